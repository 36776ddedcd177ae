//! Report in one self-contained HTML file: the table and the charts.

use super::super::outcome::Outcome;
use super::chart::charts;
use super::table::table;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
                     padding:0 1rem;color:#222;background:#fff}pre{overflow-x:auto;background:\
                     #f6f6f6;padding:1rem}svg{max-width:100%;height:auto}";

/// Formats the page.
pub fn html(outcome: &Outcome) -> String {
    let title = format!("holdfast generate: {} to {}", outcome.traffic, outcome.target);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n<body>\n\
         <h1>{title}</h1>\n<pre>{}</pre>\n",
        escape(&table(outcome)),
        title = escape(&title),
    );
    for chart in charts(outcome) {
        page += &format!("<h2>{}</h2>\n{}\n", escape(chart.title), chart.svg);
    }
    page + "</body>\n</html>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::chart::tests::outcome;
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = html(&outcome());
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        assert_eq!(page.matches("<svg ").count(), 3);
        for stranger in ["src=", "href=", "@import", "<script", "url("] {
            assert!(!page.contains(stranger), "{stranger}");
        }
    }

    #[test]
    fn text_is_escaped() {
        let outcome = Outcome { target: "<&>".to_owned(), ..Outcome::default() };
        assert!(html(&outcome).contains("to &lt;&amp;&gt;</h1>"));
    }
}
