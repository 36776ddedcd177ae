//! The documents against the code.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use holdfast::stats::{Answer, Drop};

fn document(name: &str) -> String {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Each drop reason has a row with its description, in the order of the code, and an advice.
#[test]
fn every_drop_reason_is_documented() {
    let text = document("COUNTERS.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    for reason in Drop::ALL {
        let start = format!("| `{}` | {} | ", reason.as_str(), reason.describe().trim());
        let row = rows.iter().find(|row| row.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("docs/COUNTERS.md lacks a row {start:?}"));
        assert!(row.len() > start.len() + 2, "{reason:?} has no advice");
    }
    let reasons = text.split("## Drop reasons").nth(1).unwrap().split("## Flows").next().unwrap();
    assert_eq!(
        reasons.lines().filter(|line| line.starts_with("| `")).count(),
        Drop::ALL.len(),
        "a row for no reason"
    );
}

/// Each kind of answer has a row with its description.
#[test]
fn every_answer_is_documented() {
    let text = document("COUNTERS.md");
    for answer in Answer::ALL {
        let row = format!("| `{}` | {} |", answer.as_str(), answer.describe().trim());
        assert!(text.lines().any(|line| line == row), "docs/COUNTERS.md lacks a row {row:?}");
    }
}

/// Links between the documents, and from them to files, lead somewhere.
#[test]
fn relative_links_lead_to_files() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = vec![root.join("README.md")];
    let listing = std::fs::read_dir(root.join("docs")).unwrap();
    documents.extend(listing.map(|entry| entry.unwrap().path()));
    let mut links = 0;
    for path in documents.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{}: {target} leads nowhere", path.display());
        }
    }
    assert!(links > 10, "the documents are linked");
}
