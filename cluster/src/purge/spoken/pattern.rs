//! Patterns, as far as they say what scopes can say: lists of names between anchors, and beginnings of
//! paths.

/// Parentheses within parentheses: what is sent has three.
const DEPTH_MAX: usize = 8;
/// Before a name in a list.
const BEFORE: [&str; 9] = [
    "(^|,)",
    "(^| )",
    "(^|\\s)",
    "(^|[, ])",
    "(^|,| )",
    "(?:^|,)",
    "(?:^|\\s)",
    "\\b",
    "^",
];
/// Behind it. The third is FOSHttpCache 1.
const BEHIND: [&str; 10] = [
    "(,|$)",
    "( |$)",
    "(,.+)?$",
    "(\\s|$)",
    "([, ]|$)",
    "(,| |$)",
    "(?:,|$)",
    "(?:\\s|$)",
    "\\b",
    "$",
];
/// What says in a pattern more than itself, when no backslash stands before it. A full stop is taken for
/// one: names have them, and who sends `v1.2` does not mean `v1x2`.
const SPECIAL: &str = "*+?[]{}()^$|";

/// What a field with tags names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tags {
    /// Everything.
    All,
    /// These.
    Named(Vec<String>),
}

/// What a pattern says of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Paths {
    /// All of them.
    All,
    /// Those that begin with it.
    Begin(String),
    /// This one.
    One(String),
}

/// The tags in a list, which blanks, commas or bars part, or in a pattern.
pub(super) fn tags(value: &str) -> Result<Tags, String> {
    let value = value.trim();
    if matches!(value, ".*" | "^.*$" | "(.*)" | ".+") {
        return Ok(Tags::All);
    }
    let is_pattern = value.contains(['(', '\\', '^', '$', '[', '*', '+']);
    if is_pattern {
        return names(value).map(Tags::Named);
    }
    let parts = value.split(|c: char| c.is_whitespace() || c == ',' || c == '|');
    let named = parts.filter(|part| !part.is_empty());
    Ok(Tags::Named(named.map(str::to_owned).collect()))
}

/// The names that a pattern lists.
pub(super) fn names(pattern: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    collect(pattern.trim(), DEPTH_MAX, &mut found)?;
    Ok(found)
}

fn collect(pattern: &str, depth: usize, found: &mut Vec<String>) -> Result<(), String> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err("too many parentheses".into());
    };
    let parts = split(pattern)?;
    if parts.len() > 1 {
        return parts
            .into_iter()
            .try_for_each(|part| collect(part, depth, found));
    }
    let mut rest = pattern;
    if let Some(inner) = BEFORE.iter().find_map(|anchor| rest.strip_prefix(anchor)) {
        rest = inner;
    }
    let behind = BEHIND.iter().find_map(|anchor| rest.strip_suffix(anchor));
    if let Some(inner) = behind.filter(|inner| !inner.ends_with('\\')) {
        rest = inner;
    }
    if rest.len() < pattern.len() {
        return collect(rest, depth, found);
    }
    if let Some(inner) = rest.strip_prefix('(').and_then(|r| r.strip_suffix(')')) {
        return collect(inner.strip_prefix("?:").unwrap_or(inner), depth, found);
    }
    let name = literal(rest)?;
    if name.is_empty() || name.contains([',', ' ']) {
        return Err(format!("{pattern:?} does not name a tag"));
    }
    found.push(name);
    Ok(())
}

/// The alternatives of a pattern: at bars outside of parentheses and brackets.
fn split(pattern: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut begin, mut depth) = (Vec::new(), 0, 0_usize);
    let mut is_escaped = false;
    for (at, c) in pattern.char_indices() {
        if std::mem::take(&mut is_escaped) {
            continue;
        }
        match c {
            '\\' => is_escaped = true,
            '(' | '[' => depth += 1,
            ')' | ']' => {
                depth = depth
                    .checked_sub(1)
                    .ok_or_else(|| format!("{pattern:?} is no pattern"))?;
            }
            '|' if depth == 0 => {
                parts.push(&pattern[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(format!("{pattern:?} is no pattern"));
    }
    parts.push(&pattern[begin..]);
    Ok(parts)
}

/// The text that a pattern stands for, if it stands for one.
fn literal(pattern: &str) -> Result<String, String> {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c) if !c.is_ascii_alphanumeric() => text.push(c),
                _ => return Err(format!("{pattern:?} is more than a list of names")),
            },
            c if SPECIAL.contains(c) => {
                return Err(format!("{pattern:?} is more than a list of names"));
            }
            c => text.push(c),
        }
    }
    Ok(text)
}

/// What a pattern for paths says. One that does not begin with `^` is taken to begin where paths do.
pub(super) fn paths(pattern: &str) -> Result<Paths, String> {
    let anchored = pattern.trim();
    let rest = anchored.strip_prefix('^').unwrap_or(anchored);
    let (rest, is_whole) = match rest.strip_suffix(".*$").or_else(|| rest.strip_suffix(".*")) {
        Some(begins) => (begins, false),
        None => match rest.strip_suffix('$').filter(|rest| !rest.ends_with('\\')) {
            Some(whole) => (whole, true),
            None => (rest, false),
        },
    };
    if !is_whole && matches!(rest, "" | "/") {
        return Ok(Paths::All);
    }
    let path = literal(rest)
        .ok()
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| {
            format!("{pattern:?} is more than the beginning of a path (`^/path`, `/path.*`)")
        })?;
    Ok(match is_whole {
        true => Paths::One(path),
        false => Paths::Begin(path),
    })
}
