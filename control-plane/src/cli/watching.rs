//! `--watch`: an answer again and again, as it changes.

use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

use clap::Args;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{Asking, write_out};

/// How often the control plane is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long it may be away meanwhile: it may be restarted.
const AWAY_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Watch {
    /// Show it again whenever it changes, until interrupted.
    #[arg(long)]
    watch: bool,
}

impl Watch {
    pub(super) fn is_asked_for(self) -> bool {
        self.watch
    }

    /// Asks for `path` once, or again and again, and prints the answer as [`Asking::tell`] does.
    #[expect(
        clippy::disallowed_methods,
        reason = "a command has one thread, and no runtime to hold up"
    )]
    pub(super) fn tell<T: DeserializeOwned>(
        self,
        asking: &Asking,
        path: &str,
        table: impl Fn(T) -> String,
    ) -> anyhow::Result<()> {
        if !self.watch {
            return asking.tell(path, table);
        }
        let on_screen = io::stdout().is_terminal();
        let (mut seen, mut shown) = (Instant::now(), None);
        loop {
            match asking.told(path, &table) {
                Ok(told) => {
                    seen = Instant::now();
                    let is_new = shown.as_ref() != Some(&told);
                    if is_new && !write_out(&frame(&told, shown.is_none(), on_screen))? {
                        return Ok(());
                    }
                    shown = Some(told);
                }
                Err(error) if shown.is_none() || seen.elapsed() > AWAY_MAX => return Err(error),
                Err(error) => {
                    // Who cannot see it still has the output.
                    let _ = writeln!(io::stderr(), "control-plane: {error:#}; asking again");
                }
            }
            thread::sleep(EVERY);
        }
    }
}

/// What is written: on a screen in the place of what was there, else behind it.
fn frame(told: &str, is_first: bool, on_screen: bool) -> String {
    match (on_screen, is_first || told.starts_with('{')) {
        (true, _) => format!("\x1b[H\x1b[2J{told}"),
        // JSON is a line each, tables stand apart.
        (false, true) => told.to_owned(),
        (false, false) => format!("\n{told}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_written_over_and_a_file_is_gone_on_with() {
        assert_eq!(frame("A\n", false, true), "\x1b[H\x1b[2JA\n");
        assert_eq!(frame("A\n", true, false), "A\n");
        assert_eq!(frame("A\n", false, false), "\nA\n");
        assert_eq!(frame("{}\n", false, false), "{}\n");
    }
}
