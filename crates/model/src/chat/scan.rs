//! A look at a template before the engine gets it: its size, what the engine does not know, and what could make it loop.

/// Bytes of a template at most; the longest known have 40 thousand.
const MOST_BYTES: usize = 256 << 10;

/// Words of one tag at most: the engine's parser goes as deep as a tag is long.
const MOST_WORDS: usize = 4000;

/// One word within a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Word<'a> {
    Name(&'a str),
    Text,
    Other(char),
}

/// A tag `{% … %}` or `{{ … }}`: its words, and where each begins in the source.
struct Tag<'a> {
    statement: bool,
    words: Vec<(usize, Word<'a>)>,
}

/// The source as the engine may have it.
///
/// `{% generation %}` marks what an assistant says for training; to the text it is a plain scope, which the engine calls
/// `with`. A namespace is the one value that can come to hold itself, and to write such a value would never end: so it must
/// be made by `{% set NAME = namespace(…) %}` and used by its attributes, as all known templates do.
///
/// # Errors
/// The broken rule.
pub(super) fn prepare(source: &str) -> Result<String, String> {
    if source.len() > MOST_BYTES {
        let most = MOST_BYTES >> 10;
        return Err(format!("the template has {} bytes, more than {most} KiB", source.len()));
    }
    let tags = tags(source)?;
    check_namespaces(&tags)?;
    let mut made = String::with_capacity(source.len());
    let mut done = 0;
    for tag in tags.iter().filter(|t| t.statement) {
        let (at, old, new) = match tag.words[..] {
            [(at, Word::Name(old @ "generation"))] => (at, old, "with"),
            [(at, Word::Name(old @ "endgeneration"))] => (at, old, "endwith"),
            _ => continue,
        };
        made += &source[done..at];
        made += new;
        done = at + old.len();
    }
    made += &source[done..];
    Ok(made)
}

impl<'a> Tag<'a> {
    fn word(&self, i: usize) -> Option<Word<'a>> {
        self.words.get(i).map(|&(_, word)| word)
    }
}

fn check_namespaces(tags: &[Tag<'_>]) -> Result<(), String> {
    use Word::{Name, Other};
    let made = |tag: &Tag<'_>| match (tag.word(0), tag.word(1), tag.word(2), tag.word(3)) {
        (Some(Name("set")), Some(Name(_)), Some(Other('=')), Some(Name("namespace"))) => closes_at_end(&tag.words[4..]),
        _ => false,
    };
    let mut names: Vec<&str> = Vec::new();
    for tag in tags.iter().filter(|t| t.statement) {
        if let (Some(Name("set")), Some(Name(name)), Some(next)) = (tag.word(0), tag.word(1), tag.word(2))
            && (next == Other('.') || made(tag))
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    for tag in tags {
        for (i, &(_, w)) in tag.words.iter().enumerate() {
            let Name(name) = w else { continue };
            let before = i.checked_sub(1).and_then(|i| tag.word(i));
            let next = tag.word(i + 1);
            if before == Some(Other('.')) || next == Some(Name("is")) {
                continue;
            }
            if name == "namespace" && !(i == 3 && made(tag)) && next != Some(Other('=')) {
                return Err("a namespace must be made by `{% set NAME = namespace(…) %}`".into());
            }
            let used = matches!(next, Some(Other('.' | '[' | '=')));
            if names.contains(&name) && !used {
                return Err(format!(
                    "the namespace `{name}` is used as a value, not by its attributes"
                ));
            }
        }
    }
    Ok(())
}

/// Do these words begin with a parenthesis that closes with the last of them?
fn closes_at_end(words: &[(usize, Word<'_>)]) -> bool {
    let mut depth = 0;
    for (i, &(_, word)) in words.iter().enumerate() {
        match word {
            Word::Other('(') => depth += 1,
            Word::Other(')') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i > 0 && i + 1 == words.len();
        }
    }
    false
}

/// All tags of a template. One that does not end is the engine's to refuse.
fn tags(source: &str) -> Result<Vec<Tag<'_>>, String> {
    let mut tags: Vec<Tag<'_>> = Vec::new();
    let mut at = 0;
    while let Some(open) = source[at..].find('{').map(|i| at + i) {
        let (statement, close) = match source.as_bytes().get(open + 1) {
            Some(b'#') => {
                let Some(end) = source[open + 2..].find("#}") else {
                    break;
                };
                at = open + 2 + end + 2;
                continue;
            }
            Some(b'%') => (true, *b"%}"),
            Some(b'{') => (false, *b"}}"),
            _ => {
                at = open + 1;
                continue;
            }
        };
        let (words, end) = words(source, open + 2, close)?;
        at = end;
        let raw = statement && matches!(words[..], [(_, Word::Name("raw"))]);
        tags.push(Tag { statement, words });
        if raw {
            let Some(end) = source[at..].find("endraw") else { break };
            at += end;
        }
    }
    Ok(tags)
}

type Words<'a> = Vec<(usize, Word<'a>)>;

/// The words from `at` to the end of the tag, and where it ends.
fn words(source: &str, mut at: usize, close: [u8; 2]) -> Result<(Words<'_>, usize), String> {
    let bytes = source.as_bytes();
    let mut words = Vec::new();
    let mut depth = 0_usize;
    // A sign beside the delimiters trims blanks.
    if matches!(bytes.get(at), Some(b'-' | b'+')) {
        at += 1;
    }
    while let Some(&byte) = bytes.get(at) {
        if depth == 0
            && (bytes[at..].starts_with(&close) || matches!(byte, b'-' | b'+') && bytes[at + 1..].starts_with(&close))
        {
            return Ok((words, at + 2 + usize::from(byte != close[0])));
        }
        let start = at;
        let word = match byte {
            b'"' | b'\'' => {
                at += 1;
                while bytes.get(at).is_some_and(|&b| b != byte) {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
                Word::Text
            }
            b if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 => {
                while bytes
                    .get(at)
                    .is_some_and(|&b| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80)
                {
                    at += 1;
                }
                Word::Name(&source[start..at])
            }
            b => {
                at += 1;
                if b.is_ascii_whitespace() {
                    continue;
                }
                // Comparisons are no assignments.
                let pair = matches!(b, b'=' | b'!' | b'<' | b'>') && bytes.get(at) == Some(&b'=');
                at += usize::from(pair);
                match b {
                    b'(' | b'[' | b'{' => depth += 1,
                    b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                Word::Other(if pair { '≟' } else { b as char })
            }
        };
        words.push((start, word));
        if words.len() > MOST_WORDS {
            return Err(format!("a tag of the template has more than {MOST_WORDS} words"));
        }
    }
    Ok((words, source.len()))
}
