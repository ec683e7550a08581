//! The look of the page.
//!
//! Two palettes, light and dark, with at least 4.5:1 for text and 3:1 for lines; the eight series colours keep
//! their order of lightness apart for colour-blind readers. Paper always gets the light one.

/// The style sheet.
pub(crate) const STYLE: &str = r#"
:root{color-scheme:light dark;--paper:#fff;--raised:#f6f7f9;--ink:#16191d;--muted:#59626d;--rule:#e3e6ea;--axis:#98a1ab;
--accent:#0068b0;--good:#00694f;--good-bg:#e2f3ec;--bad:#ad3a00;--bad-bg:#fdece2;--new:#7a5000;--new-bg:#fbf1d9;
--s1:#0068b0;--s2:#cc4e00;--s3:#007a5c;--s4:#b0448a;--s5:#946200;--s6:#3a86b8;--s7:#5c4db3;--s8:#4d5561}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171b;--raised:#1d2126;--ink:#e7eaee;--muted:#9fa9b4;
--rule:#2d333a;--axis:#69737e;--accent:#6cb8f0;--good:#5fd3ab;--good-bg:#143329;--bad:#ff9a66;--bad-bg:#3b2217;
--new:#eec15a;--new-bg:#352b13;
--s1:#56aef0;--s2:#ff8a4c;--s3:#3fc99b;--s4:#e58cc4;--s5:#e0ab3c;--s6:#9bd3f5;--s7:#aa9df2;--s8:#b6bfc9}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;max-width:56rem;padding:3rem 1.5rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:2.1rem;line-height:1.2;letter-spacing:-.02em;margin:0;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.3;letter-spacing:-.01em;margin:3rem 0 .75rem}
h3,h4,h5,h6{font-size:1.05rem;margin:1.75rem 0 .5rem}
h2,h3,h4,h5,h6,figcaption,caption{break-after:avoid}
p{margin:.75rem 0;max-width:42rem;text-wrap:pretty}
.lead{font-size:1.15rem;line-height:1.5;color:var(--muted);margin:.6rem 0 0}
code,pre{font-family:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;font-size:.875em}
p code{background:var(--raised);border-radius:4px;padding:.1em .3em}
.unit,.note{color:var(--muted);font-weight:400}
.note{font-size:.875rem}
.under{margin-top:.6rem}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.75rem;margin:2rem 0}
.figures div{background:var(--raised);border:1px solid var(--rule);border-radius:10px;padding:.9rem 1rem;break-inside:avoid}
.figures dt{font-size:.875rem;color:var(--muted)}
.figures dd{margin:0}
.figures b{font-size:1.75rem;line-height:1.3;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tone{font-weight:600;display:block}
.better .tone{color:var(--good)}
.worse .tone{color:var(--bad)}
.scroll{overflow-x:auto;margin:1.5rem 0 0;position:relative}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:4px}
table{border-collapse:collapse;width:100%;font-size:.9375rem;line-height:1.4}
caption,figcaption{font-weight:600;text-align:left;padding:0 0 .6rem}
th,td{padding:.45rem .75rem;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule)}
th:first-child{padding-left:0}
td:last-child,thead th:last-child{padding-right:.4rem}
thead th{font-size:.875rem;font-weight:600;vertical-align:bottom;border-bottom:1.5px solid var(--axis)}
tbody th{font-weight:400}
.group th{font-size:.8125rem;font-weight:600;color:var(--muted);padding-top:1.1rem;border-bottom-color:var(--axis)}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td .note{display:inline-block;min-width:3.6rem;font-size:.8125rem}
tbody th .note{font-size:.8125rem;white-space:nowrap}
.mark{border-radius:4px;padding:.1em .35em;margin:0 -.35em}
.best{font-weight:650;background:var(--good-bg);color:var(--good)}
.changed{background:var(--new-bg);color:var(--new);text-decoration:underline dotted;text-underline-offset:.2em}
.worse.mark{background:var(--bad-bg);color:var(--bad);font-style:italic}
p .mark{margin:0 .4em 0 0;font-size:.8125rem}
figure{margin:2rem 0;break-inside:avoid}
figure p{margin:.4rem 0 0}
.warn{color:var(--bad)}
svg{display:block;width:100%;height:auto;overflow:visible}
.narrow{display:none}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem;margin:1.5rem 0 0}
.samples figure{margin:0;display:flex;flex-direction:column}
.samples figcaption{padding-bottom:.4rem;font-size:.9375rem}
pre{margin:0;flex:1;padding:.9rem 1rem;background:var(--raised);border:1px solid var(--rule);border-radius:10px;
white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55}
pre b{color:var(--accent);font-weight:600}
details{margin:1rem 0;border:1px solid var(--rule);border-radius:10px;padding:0 1rem}
details[open]{padding-bottom:.5rem}
summary{cursor:pointer;font-weight:600;padding:.7rem 0}
footer{margin-top:4rem;padding-top:1.25rem;border-top:1px solid var(--rule);font-size:.875rem;color:var(--muted)}
footer dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.25rem;margin:0}
footer dd{margin:0;min-width:0;overflow-wrap:anywhere}
@media screen and (max-width:34rem){body{padding:1.75rem 1rem 3rem}h1{font-size:1.65rem}h2{margin-top:2.25rem}
.wide{display:none}.narrow{display:block}.figures{grid-template-columns:1fr 1fr}.figures b{font-size:1.4rem}
table{font-size:.875rem}th,td{padding:.45rem .3rem}td .note,tbody th .note{display:block;min-width:0;white-space:normal}
.mark{padding:.1em .2em;margin:0 -.2em}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}details::details-content{content-visibility:visible;display:block;block-size:auto}
.scroll{overflow:visible}thead{display:table-header-group}tr{break-inside:avoid}}
"#;
