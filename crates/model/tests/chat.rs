//! Chat templates against the reference, and against strangers who mean harm.
//!
//! `fixtures/chat/families.json` holds templates with the features of well-known families and what
//! `apply_chat_template` of transformers 5.24 makes of five conversations, with and without a prompt for the answer.

use ounce_model::{ChatTemplate, Message};
use serde_json::Value;
use std::{collections::BTreeMap, fs, time::Instant};

fn template(source: &str) -> ounce_model::Result<ChatTemplate> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, t)| (name.to_owned(), t.to_owned()));
    ChatTemplate::new("MODEL", source, BTreeMap::from(tokens))
}

fn render(source: &str) -> Result<String, String> {
    template(source)
        .and_then(|t| t.render(&[Message::new("user", "Hi")], true))
        .map_err(|e| e.to_string())
}

#[test]
fn families_are_rendered_as_the_reference_does() {
    let all: Vec<Value> = serde_json::from_str(include_str!("fixtures/chat/families.json")).unwrap();
    let mut compared = 0;
    for family in &all {
        let name = &family["name"];
        let template = template(family["template"].as_str().unwrap()).unwrap();
        for case in family["cases"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let made = template.render(&messages, case["answer"].as_bool().unwrap());
            match case["error"].as_str() {
                None => assert_eq!(made.unwrap(), case["text"].as_str().unwrap(), "{name}"),
                Some(error) => {
                    let told = made.unwrap_err().to_string();
                    assert_eq!(
                        told,
                        format!("MODEL: the template refuses this conversation: {error}"),
                        "{name}"
                    );
                }
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 120);
}

#[test]
fn today_is_known() {
    let year = render("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}").unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2026, "{year}");
    assert!(render("{{ strftime_now('%999999999d') }}").is_err());
}

#[test]
fn hostile_templates_end_in_one_line() {
    let nested = |n: usize| format!("{{{{ {}1{} }}}}", "(".repeat(n), ")".repeat(n));
    let grown = |body: &str, use_it: &str| {
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for i in range(90000) %}}{{% set ns.x = {body} %}}{{% endfor %}}{use_it}"
        )
    };
    let hostile = [
        "{{ 'a' * 10**9 }}".to_owned(),
        "{{ [0] * 10**9 }}".to_owned(),
        "{% for i in range(10**9) %}x{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{{ '{:>1000000000}'.format('x') }}".to_owned(),
        "{{ 'x'.center(10**9) }}".to_owned(),
        "{{ 'a' | indent(10**9) }}".to_owned(),
        "{{ 10**10**10 }}".to_owned(),
        "{{ ('x'*99999).join(range(99999)) }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}".to_owned(),
        "{% set x = [namespace()] %}{{ x }}".to_owned(),
        "{% include 'x' %}".to_owned(),
        "{{ debug() }}".to_owned(),
        "{% if".to_owned(),
        "{{ 'x".to_owned(),
        "{{ nothing.foo }}".to_owned(),
        "{{ raise_exception('a\nb') }}".to_owned(),
        "x".repeat(300 << 10),
        nested(100_000),
        nested(1500),
        format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        grown("[ns.x]", "{{ ns.x | tojson }}"),
    ];
    for source in &hostile {
        let start = Instant::now();
        let told = render(source).expect_err(&source[..source.len().min(80)]);
        assert!(told.starts_with("MODEL: ") && !told.contains('\n'), "{told}");
        assert!(start.elapsed().as_secs() < 30, "{told}");
    }
    // Deep, but within what is allowed: no stack is too small for it.
    for body in ["[ns.x]", "{'a': ns.x}", "[ns.x] + []"] {
        let _ = render(&grown(body, "{{ ns.x == [ns.x] }}"));
    }
}

#[test]
fn a_folder_has_its_template_where_the_reference_looks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let found = || {
        let template = ChatTemplate::open(dir.path()).map_err(|e| e.to_string())?;
        let text = template.map(|t| t.render(&[Message::new("user", "Hi")], true));
        Ok::<_, String>(text.map(|t| t.unwrap()))
    };
    assert_eq!(found(), Ok(None));
    let config = dir.path().join("tokenizer_config.json");
    let tokens = r#""bos_token": {"content": "<b>"}, "eos_token": "<e>""#;
    fs::write(
        &config,
        format!(r#"{{{tokens}, "chat_template": "one{{{{ bos_token }}}}"}}"#),
    )
    .unwrap();
    assert_eq!(found(), Ok(Some("one<b>".into())));
    let two = r#"[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two{{ eos_token }}"}]"#;
    fs::write(&config, format!(r#"{{{tokens}, "chat_template": {two}}}"#)).unwrap();
    assert_eq!(found(), Ok(Some("two<e>".into())));
    fs::write(
        &config,
        r#"{"chat_template": [{"name": "tool_use", "template": "no"}]}"#,
    )
    .unwrap();
    assert!(
        found()
            .unwrap_err()
            .contains("has several templates (tool_use), none of them called default")
    );
    fs::write(&config, r#"{"chat_template": 3}"#).unwrap();
    assert!(found().unwrap_err().contains("must be a template"));
    fs::write(&config, r#"{"chat_template": "one"}"#).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(found(), Ok(Some("file".into())));
}
