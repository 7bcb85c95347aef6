//! Shell completions and man pages, made of the commands themselves.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Arguments, print};

/// Prints what `shell` needs to complete our commands.
pub(super) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut text);
    print(&String::from_utf8(text)?)
}

/// Writes a page for each command into `dir`.
pub(super) fn man(dir: &Path) -> anyhow::Result<()> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Arguments::command(), dir)
    };
    write().with_context(|| dir.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_says_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        let page = |name: &str| {
            let path = dir.path().join(format!("{name}.1"));
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let root = page("control-plane");
        for words in ["Exit codes", "tokens", "serve", "completions"] {
            assert!(root.contains(words), "{words}: {root}");
        }
        let create = page("control-plane-tokens-create");
        assert!(create.contains("It is shown once"), "{create}");
        assert!(create.contains("expires"), "{create}");
        // The hidden flag stays so: a token on a command line is seen by everybody on the machine.
        assert!(!create.contains("\\-\\-token\\fR "), "{create}");
        fn all(command: &clap::Command) {
            for sub in command.get_subcommands() {
                assert!(sub.get_about().is_some(), "{} says nothing", sub.get_name());
                for argument in sub.get_arguments().filter(|a| !a.is_hide_set()) {
                    let says = argument.get_help().is_some();
                    assert!(
                        says,
                        "{} {} says nothing",
                        sub.get_name(),
                        argument.get_id()
                    );
                }
                all(sub);
            }
        }
        all(&Arguments::command());
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_shell_is_completed() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "control-plane", &mut text);
            let text = String::from_utf8(text).unwrap();
            for words in ["tokens", "rotate", "grace", "watch"] {
                assert!(text.contains(words), "{shell}: {words}");
            }
        }
    }
}
