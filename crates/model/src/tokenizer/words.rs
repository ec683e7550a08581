//! How byte-level tokenizers cut a text into words, by the names that GGUF files use.
//!
//! Owns the table from name to regular expressions, applied one after the other, each isolating what it matches in the
//! pieces that the one before left. It must not know where the name was read.
#![expect(
    clippy::needless_raw_string_hashes,
    clippy::unicode_not_nfc,
    reason = "expressions as they are published"
)]

/// One way of cutting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    /// Regular expressions.
    pub(super) cuts: &'static [&'static str],
    /// A word that is a token stays whole, whatever the merges say.
    pub(super) keeps_whole: bool,
    /// A text begins with BOS unless the file says otherwise.
    pub(super) bos: bool,
    /// Characters are composed first (NFC), as these tokenizers do.
    pub(super) composes: bool,
}

const GPT2: &[&str] = &[r##"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"##];
const DIGITS_THEN_GPT2: &[&str] = &[
    r##"\p{N}"##,
    r##"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"##,
];
const LLAMA3: &[&str] = &[
    r##"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
/// Qwen 2 and 3.
pub(super) const QWEN2: &[&str] = &[
    r##"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const QWEN35: &[&str] = &[
    r##"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const TEKKEN: &[&str] = &[
    r##"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const FALCON: &[&str] = &[
    r##"[\p{P}\$\+<=>\^~\|`]+"##,
    r##"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"##,
    r##"[0-9][0-9][0-9]"##,
];
const UNNAMED: &[&str] = &[
    r##"[\p{P}\$\+<=>\^~\|]+"##,
    r##"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"##,
    r##"\p{N}+"##,
    r##"[0-9][0-9][0-9]"##,
];
const DEEPSEEK_LLM: &[&str] = &[
    r##"[\r\n]"##,
    r##"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"##,
    r##"\s?[!-/:-~！-／：-～‘-‟　-。]+"##,
    r##"\s+$"##,
    r##"[一-龥ࠀ-一가-퟿]+"##,
    r##"\p{N}+"##,
];
const DEEPSEEK_CODER: &[&str] = &[
    r##"[\r\n]"##,
    r##"\s?\p{L}+"##,
    r##"\s?\p{P}+"##,
    r##"[一-龥ࠀ-一가-퟿]+"##,
    r##"\p{N}"##,
];
const DEEPSEEK_V3: &[&str] = &[
    r##"\p{N}{1,3}"##,
    r##"[一-龥぀-ゟ゠-ヿ]+"##,
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

/// The way that `name` (`tokenizer.ggml.pre`) stands for; `None` for a name that no known model of these families has.
pub(super) fn words(name: &str) -> Option<Words> {
    let plain = |cuts| Words {
        cuts,
        keeps_whole: false,
        bos: false,
        composes: false,
    };
    Some(match name {
        "default" | "" => plain(UNNAMED),
        "gpt-2" | "phi-2" | "olmo" | "jais" | "trillion" | "gigachat" | "exaone4" | "a.x-4.0" | "mellum" => plain(GPT2),
        "mpt" => Words {
            composes: true,
            ..plain(GPT2)
        },
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(DIGITS_THEN_GPT2)
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" => Words {
            keeps_whole: true,
            bos: true,
            ..plain(LLAMA3)
        },
        "dbrx" | "smaug-bpe" => plain(LLAMA3),
        "qwen2" | "megrez" => Words {
            composes: true,
            ..plain(QWEN2)
        },
        "qwen35" => Words {
            composes: true,
            ..plain(QWEN35)
        },
        "deepseek-r1-qwen" | "stablelm2" => plain(QWEN2),
        "tekken" => Words {
            keeps_whole: true,
            bos: true,
            ..plain(TEKKEN)
        },
        "falcon" => plain(FALCON),
        "deepseek-llm" => plain(DEEPSEEK_LLM),
        "deepseek-coder" => plain(DEEPSEEK_CODER),
        "deepseek-v3" => plain(DEEPSEEK_V3),
        _ => return None,
    })
}
