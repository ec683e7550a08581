//! Text as every rendering needs it: display width, wrapping, escaping, and numbers a person can read.
//!
//! Must not know tables, plots or pages.

/// Columns a character takes on a terminal: 0 for marks that sit on the one before, 2 for East Asian wide
/// characters and emoji, 1 otherwise. The ranges are the large blocks of UAX 11, not every exception in it.
fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036F
        | 0x0483..=0x0489
        | 0x0591..=0x05BD
        | 0x0610..=0x061A
        | 0x064B..=0x065F
        | 0x093C
        | 0x0941..=0x0948
        | 0x094D
        | 0x0E31
        | 0x0E34..=0x0E3A
        | 0x0E47..=0x0E4E
        | 0x1AB0..=0x1AFF
        | 0x1DC0..=0x1DFF
        | 0x200B..=0x200F
        | 0x2060..=0x2064
        | 0x20D0..=0x20F0
        | 0xFE00..=0xFE0F
        | 0xFE20..=0xFE2F
        | 0xFEFF
        | 0xE0100..=0xE01EF => 0,
        0x1100..=0x115F
        | 0x2E80..=0x303E
        | 0x3041..=0xA4CF
        | 0xA960..=0xA97F
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1F64F
        | 0x1F680..=0x1F6FF
        | 0x1F900..=0x1F9FF
        | 0x1FA70..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// Columns a text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// The text with control characters shown as pictures, so that generated text can neither move the cursor nor
/// recolour the terminal. Line ends are kept; a tab becomes a space.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '\n',
            '\t' => ' ',
            '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
            '\x7f' => '\u{2421}',
            // C1 controls and the characters that reorder what follows them.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            other => other,
        })
        .collect()
}

/// Breaks a text into lines of at most `limit` columns, at spaces where possible. Never returns no line.
pub(crate) fn wrap(text: &str, limit: usize) -> Vec<String> {
    let limit = limit.max(2);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            if !line.is_empty() && width(&line) + 1 + width(word) > limit {
                lines.push(std::mem::take(&mut line));
            } else if !line.is_empty() {
                line.push(' ');
            }
            for c in word.chars() {
                if width(&line) + char_width(c) > limit {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(c);
            }
        }
        lines.push(line);
    }
    lines
}

/// Escapes a text for HTML and SVG, both as content and inside quoted attributes. Characters XML forbids are
/// replaced, so that the SVG stays well-formed on its own.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

/// Groups the digits of a whole number by three with a no-break thin space: `12 345 678`.
pub(crate) fn group_digits(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("\u{2212}", rest));
    let mut out = String::from(sign);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A number with a fixed number of decimals, digits grouped, with a true minus sign. Not-a-number and the
/// infinities are shown as what they are.
pub(crate) fn format_number(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "\u{2212}∞" }.into();
    }
    if value.abs() >= 1e15 {
        return scientific(value, decimals);
    }
    let plain = format!("{value:.decimals$}");
    let plain = match plain.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest,
        _ => &plain,
    };
    match plain.split_once('.') {
        Some((whole, fraction)) => format!("{}.{fraction}", group_digits(whole)),
        None => group_digits(plain),
    }
}

fn scientific(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!(
            "{}×10{}",
            mantissa.replace('-', "\u{2212}"),
            superscript(exponent.parse().unwrap_or(0))
        ),
        None => text,
    }
}

/// A whole number in superscript digits.
pub(crate) fn superscript(n: i32) -> String {
    n.to_string()
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '0' | '4'..='9' => char::from_u32(0x2070 + (u32::from(c) - 48)).unwrap_or(c),
            other => other,
        })
        .collect()
}

/// A number of bytes in binary units, three digits: `12.3 MiB`.
///
/// ```
/// assert_eq!(ounce_lab::report::format_bytes(12_900_000), "12.3 MiB");
/// ```
pub fn format_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    // 999.5 would be rounded to a fourth digit.
    while value >= 999.5 && unit < 6 {
        value /= 1024.0;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][unit];
    format!("{:.*} {name}", if unit == 0 { 0 } else { decimals(value) }, value)
}

/// A count in decimal units, three digits: `4.21 M`.
///
/// ```
/// assert_eq!(ounce_lab::report::format_count(4_212_000), "4.21 M");
/// ```
pub fn format_count(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit < 5 {
        value /= 1000.0;
        unit += 1;
    }
    match ["", "k", "M", "G", "T", "P"][unit] {
        "" => count.to_string(),
        name => format!("{value:.*} {name}", decimals(value)),
    }
}

/// The change from `before` to `after` in percent, signed: `−37 %`, `+1.2 %`. `None` where it means nothing
/// (`before` is zero, or a number is missing).
///
/// ```
/// assert_eq!(ounce_lab::report::format_percent_change(8.0, 5.0).as_deref(), Some("−38 %"));
/// ```
pub fn format_percent_change(before: f64, after: f64) -> Option<String> {
    let change = (after / before - 1.0) * 100.0;
    if before == 0.0 || !change.is_finite() {
        return None;
    }
    let decimals = usize::from(change.abs() < 9.95);
    let size = format_number(change.abs(), decimals);
    Some(if size.bytes().all(|b| b == b'0' || b == b'.') {
        "±0 %".to_owned()
    } else if change < 0.0 {
        format!("\u{2212}{size} %")
    } else {
        format!("+{size} %")
    })
}

/// Decimals that leave three digits.
fn decimals(value: f64) -> usize {
    if value < 9.995 { 2 } else { usize::from(value < 99.95) }
}
