//! From new ids to the text that may be shown: what a stop text might begin with is held back until it is decided.

use crate::tokenizer::StreamDecoder;

/// Texts that end a generation. They may begin in one token and end in another; they are never shown.
#[derive(Debug, Clone, Default)]
pub struct StopTexts {
    texts: Vec<String>,
    /// Not shown yet: a stop text may begin here.
    held: String,
    found: Option<usize>,
}

impl StopTexts {
    /// Stops at the first of `texts` to appear; empty ones are ignored.
    pub fn new(texts: impl IntoIterator<Item = String>) -> Self {
        Self {
            texts: texts.into_iter().filter(|text| !text.is_empty()).collect(),
            held: String::new(),
            found: None,
        }
    }

    /// The stop text that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| self.texts[i].as_str())
    }

    /// Takes more text; returns what is certain to come before any stop text. Nothing is shown after one.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let ends = self.texts.iter().enumerate();
        // The earliest beginning counts; of two that begin together, the one given first.
        let first = ends
            .filter_map(|(i, stop)| Some((self.held.find(stop.as_str())?, i)))
            .min();
        if let Some((at, i)) = first {
            self.found = Some(i);
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return shown;
        }
        let open = self.texts.iter().map(|stop| overlap(&self.held, stop)).max();
        let rest = self.held.split_off(self.held.len() - open.unwrap_or(0));
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at).filter(|&at| at <= text.len());
    starts.filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
}

/// New ids as text, up to a stop text.
#[derive(Debug, Clone)]
pub struct TextStream {
    decoder: Option<StreamDecoder>,
    stops: StopTexts,
    text: String,
}

impl TextStream {
    /// Text that continues what `decoder` has seen.
    pub fn new(decoder: StreamDecoder, stops: StopTexts) -> Self {
        Self {
            decoder: Some(decoder),
            stops,
            text: String::new(),
        }
    }

    /// Takes the next id; returns what may be shown now.
    pub fn push(&mut self, id: u32) -> String {
        let text = self.decoder.as_mut().and_then(|d| d.push(id)).unwrap_or_default();
        let shown = self.stops.push(&text);
        self.text.push_str(&shown);
        shown
    }

    /// What was held back, when no more ids come.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.take().and_then(StreamDecoder::finish).unwrap_or_default();
        let mut shown = self.stops.push(&rest);
        if self.stops.found().is_none() {
            shown += &self.stops.finish();
        }
        self.text.push_str(&shown);
        shown
    }

    /// The stop text that was found.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stops.found()
    }

    /// All that was shown.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(pieces: &[&str], stops: &[&str]) -> (String, Option<String>) {
        let mut texts = StopTexts::new(stops.iter().map(|&s| s.to_owned()));
        let mut out: String = pieces.iter().map(|p| texts.push(p)).collect();
        out += &texts.finish();
        (out, texts.found().map(str::to_owned))
    }

    #[test]
    fn a_stop_text_across_pieces_is_found_and_not_shown() {
        let found = |stop: &str| Some(stop.to_owned());
        assert_eq!(
            shown(&["one t", "wo thr", "ee"], &["two"]),
            ("one ".into(), found("two"))
        );
        assert_eq!(shown(&["aab", "aac", "x"], &["aac"]), ("aab".into(), found("aac")));
        assert_eq!(shown(&["é", "è|"], &["è|", "|"]), ("é".into(), found("è|")));
        assert_eq!(shown(&["one t", "w"], &["two"]), ("one tw".into(), None));
        assert_eq!(shown(&["a", "b"], &["", "z"]), ("ab".into(), None));
    }

    #[test]
    fn what_cannot_begin_a_stop_text_is_shown_at_once() {
        let mut texts = StopTexts::new(["\n\nUser:".to_owned()]);
        assert_eq!(texts.push("Hello\n"), "Hello");
        assert_eq!(texts.push("\nUs"), "");
        assert_eq!(texts.push("ual"), "\n\nUsual");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab]{0,24}", cuts in prop::collection::vec(0usize..24, 0..6), stops in prop::collection::vec("[ab]{1,4}", 0..3)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (out, found) = shown(&pieces, &stops);
            // Whichever was seen first, nothing of it was shown, and all before it was.
            prop_assert!(text.starts_with(&out));
            prop_assert!(stops.iter().all(|s| !out.contains(s)));
            match found {
                None => prop_assert_eq!(out, text),
                Some(stop) => prop_assert!(text[out.len()..].starts_with(&stop)),
            }
        }
    }
}
