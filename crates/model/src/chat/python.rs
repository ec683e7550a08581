//! What templates use of Python, and the reference's own filters and functions.

use minijinja::{
    Environment, Error, ErrorKind, State,
    value::{Kwargs, Tuple, Value, ValueKind, from_args},
};
use std::fmt::Write as _;

type Result<T> = std::result::Result<T, Error>;

/// Values within values that are written as JSON.
const DEEPEST: usize = 64;

/// Digits of a width in a format: texts are not padded to megabytes.
const WIDEST: usize = 4;

/// Adds all of it to an engine, and takes away what shows the engine's inside.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.remove_global("debug");
    env.remove_filter("pprint");
    env.add_filter("tojson", tojson);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_function("strftime_now", strftime_now);
    env.set_unknown_method_callback(method);
}

fn fails<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidOperation, what.into()))
}

/// The reference's escapes, which are numbers for quotes.
fn escape(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => made += "&amp;",
            '<' => made += "&lt;",
            '>' => made += "&gt;",
            '\'' => made += "&#39;",
            '"' => made += "&#34;",
            c => made.push(c),
        }
    }
    made
}

/// The time here and now, by a format of `strftime`.
fn strftime_now(format: &str) -> Result<String> {
    const LONGEST: usize = 200;
    let digits = format.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    if format.len() > LONGEST || digits.is_some_and(|n| n > WIDEST) {
        return fails("the format of a time is too long");
    }
    match jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now()) {
        Ok(text) => Ok(text),
        Err(e) => fails(format!("format of a time: {e}")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments so")]
/// `json.dumps` with the reference's defaults: nothing is escaped for HTML, and blanks follow commas and colons.
fn tojson(state: &State<'_, '_>, value: &Value, args: Kwargs) -> Result<String> {
    let indent: Option<usize> = args.get("indent")?;
    let separators: Option<(String, String)> = match args.get::<Option<Value>>("separators")? {
        None => None,
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|v| v.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(pair)
                .map_err(|_| Error::new(ErrorKind::InvalidOperation, "separators are two"))?;
            Some((item, key))
        }
    };
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (item.into(), ": ".into()));
    let mut json = Json {
        state,
        out: String::new(),
        indent,
        item,
        key,
        ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    args.assert_all_used()?;
    if indent.is_some_and(|n| n > 32) || json.item.len() + json.key.len() > 64 {
        return fails("JSON is indented too far");
    }
    json.write(value, 0)?;
    Ok(json.out)
}

struct Json<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Json<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<()> {
        if depth > DEEPEST {
            return fails(format!("JSON is more than {DEEPEST} values deep"));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => self.number(value),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Map => {
                let keys = value.try_iter()?.collect::<Vec<_>>();
                let mut pairs = Vec::with_capacity(keys.len());
                for key in keys {
                    let name = match key.kind() {
                        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                        ValueKind::None => "null".to_owned(),
                        _ => key.to_string(),
                    };
                    pairs.push((name, value.get_item(&key)?));
                }
                if self.sorted {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.list('{', '}', depth, pairs.into_iter(), |json, (name, value)| {
                    json.text(&name)?;
                    json.out += &json.key.clone();
                    json.write(&value, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list('[', ']', depth, items, |json, item| json.write(&item, depth + 1))?;
            }
            other => return fails(format!("{other} cannot be written as JSON")),
        }
        Ok(())
    }

    fn list<T>(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: impl Iterator<Item = T>,
        mut each: impl FnMut(&mut Self, T) -> Result<()>,
    ) -> Result<()> {
        self.out.push(open);
        let mut any = false;
        for item in items {
            if any {
                self.out += &self.item.clone();
            }
            any = true;
            self.new_line(depth + 1);
            each(self, item)?;
        }
        if any {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(n) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', n * depth));
        }
    }

    /// Numbers as Python writes them.
    fn number(&mut self, value: &Value) {
        let text = value.to_string();
        let float: Option<f64> = text.contains(['.', 'e', 'n', 'i']).then(|| text.parse().ok()).flatten();
        match float {
            None => self.out += &text,
            Some(x) if x.is_nan() => self.out += "NaN",
            Some(x) if x.is_infinite() => self.out += if x > 0.0 { "Infinity" } else { "-Infinity" },
            Some(x) if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) => {
                // Rust writes 1e20 and 1e-7 where Python writes 1e+20 and 1e-07.
                let text = format!("{x:e}");
                let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, power) = match power.strip_prefix('-') {
                    Some(power) => ('-', power),
                    None => ('+', power),
                };
                let _ = write!(self.out, "{digits}e{sign}{power:0>2}");
            }
            Some(x) => {
                let _ = write!(self.out, "{x:?}");
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\u{8}' => self.out += "\\b",
                '\u{c}' => self.out += "\\f",
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

/// White space as Python has it: Unicode's, and four separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Methods of texts, lists and dictionaries.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let made = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq => of_list(value, name, args)?,
        ValueKind::Map if name == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match made {
        Some(made) => Ok(made),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn of_text(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let gone = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            let s = if name == "rstrip" {
                s
            } else {
                s.trim_start_matches(gone)
            };
            Value::from(if name == "lstrip" { s } else { s.trim_end_matches(gone) })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            if by.is_empty() {
                return fails("empty separator");
            }
            let last = name == "rpartition";
            let found = if last { s.rsplit_once(by) } else { s.split_once(by) };
            let parts = match found {
                Some((before, after)) => [before, by, after],
                None if last => ["", "", s],
                None => [s, "", ""],
            };
            Value::from(Tuple::from(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let mut parts: Vec<&str> = match by {
                Some("") => return fails("empty separator"),
                Some(by) => s.rsplitn(most.saturating_add(1), by).collect(),
                None => words_from_behind(s, most),
            };
            parts.reverse();
            texts(&parts)
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name == "index" { s.find(what) } else { s.rfind(what) };
            match at {
                Some(at) => Value::from(s[..at].chars().count()),
                None => return fails("substring not found"),
            }
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!s.is_empty() && s.chars().all(|c| c.is_ascii_digit()))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(s.to_lowercase())
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = s.chars().flat_map(|c| -> Vec<char> {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "zfill" | "ljust" | "rjust" | "center" => {
            let (width, with): (usize, Option<char>) = from_args(args)?;
            if width.to_string().len() > WIDEST {
                return fails("a text is padded too far");
            }
            Value::from(padded(s, name, width, with.unwrap_or(' ')))
        }
        "format" => {
            let wide = s
                .split(|c: char| !c.is_ascii_digit())
                .any(|digits| digits.len() > WIDEST);
            // A width may itself be a value: `{:{}}`.
            let nested = s.replace("{{", "").split('{').skip(1).any(|field| !field.contains('}'));
            if wide || nested {
                return fails("a text is padded too far, or by a value");
            }
            return Ok(None);
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            texts(&lines(s, keep.unwrap_or(false)))
        }
        _ => return Ok(None),
    }))
}

fn texts(parts: &[&str]) -> Value {
    parts.iter().copied().map(Value::from).collect()
}

fn padded(s: &str, name: &str, width: usize, with: char) -> String {
    let missing = width.saturating_sub(s.chars().count());
    let fill = |n: usize, c: char| std::iter::repeat_n(c, n).collect::<String>();
    match name {
        "zfill" => {
            let (sign, digits) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", fill(missing, '0'))
        }
        "ljust" => format!("{s}{}", fill(missing, with)),
        "rjust" => format!("{}{s}", fill(missing, with)),
        _ => {
            // Python's rule for an odd rest.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{s}{}", fill(left, with), fill(missing - left, with))
        }
    }
}

/// Words from the last on, at most `most` of them and the rest in front.
fn words_from_behind(s: &str, most: usize) -> Vec<&str> {
    let mut rest = s.trim_end_matches(is_space);
    let mut parts = Vec::new();
    while !rest.is_empty() && parts.len() < most {
        let start = rest
            .rfind(is_space)
            .map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// Lines as Python divides them.
fn lines(s: &str, keep: bool) -> Vec<&str> {
    let ends = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    let (mut parts, mut rest) = (Vec::new(), s);
    while let Some(at) = rest.find(ends) {
        let long = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        parts.push(&rest[..if keep { at + long } else { at }]);
        rest = &rest[at + long..];
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

fn of_list(list: &Value, name: &str, args: &[Value]) -> Result<Option<Value>> {
    Ok(Some(match name {
        "copy" => {
            let () = from_args(args)?;
            list.clone()
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            match list.try_iter()?.position(|item| item == *what) {
                Some(at) => Value::from(at),
                None => return fails("the list does not hold it"),
            }
        }
        _ => return Ok(None),
    }))
}
