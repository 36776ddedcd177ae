//! Tables and numbers as people read them.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table};

/// How a table is to look.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    /// With colours.
    pub(super) colours: bool,
    /// With every column, also with those that say nothing.
    pub(super) all: bool,
}

/// A table without rules, whose columns line up and never wrap. Before a header, `>` aligns its
/// column right, `?` leaves it out where all it says is nothing (0, - or blank), and `!` where not
/// everything is wanted; `?` and `!` come first.
pub(super) struct Columns {
    look: Look,
    headers: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Columns {
    pub(super) fn new(headers: &[&'static str], look: Look) -> Self {
        Self { look, headers: headers.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, without blanks at their ends.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        if self.look.colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let shown: Vec<bool> = (0..self.headers.len()).map(|index| self.is_shown(index)).collect();
        let headers = self.headers.iter().zip(&shown).filter(|(_, shown)| **shown);
        table.set_header(headers.map(|(header, _)| {
            let title = Cell::new(header.trim_start_matches(['?', '!', '>']));
            align(title.add_attribute(Attribute::Bold), header)
        }));
        for row in &self.rows {
            let cells = row.iter().zip(&self.headers).zip(&shown).filter(|(_, shown)| **shown);
            table.add_row(cells.map(|((cell, header), _)| align(cell.clone(), header)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        table.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn is_shown(&self, index: usize) -> bool {
        let header = self.headers.get(index).copied().unwrap_or_default();
        let says_something =
            |row: &Vec<Cell>| row.get(index).is_some_and(|cell| !is_nothing(&cell.content()));
        match header.chars().next() {
            _ if self.look.all => true,
            Some('?') => self.rows.iter().any(says_something),
            Some('!') => false,
            _ => true,
        }
    }
}

fn is_nothing(content: &str) -> bool {
    matches!(content, "0" | "-" | "")
}

fn align(cell: Cell, header: &str) -> Cell {
    let right = header.trim_start_matches(['?', '!']).starts_with('>');
    cell.set_alignment(if right { CellAlignment::Right } else { CellAlignment::Left })
}

/// A cell of text.
pub(super) fn text(text: impl ToString) -> Cell {
    Cell::new(text)
}

/// A cell that says good, doubtful or bad by its colour, too.
pub(super) fn coloured(text: impl ToString, colour: Color) -> Cell {
    Cell::new(text).fg(colour)
}

/// A cell with a count.
pub(super) fn count(number: u64) -> Cell {
    Cell::new(grouped(number))
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds as `45s`, `3m 5s`, `2h 4m` or `3d 1h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m {}s", seconds % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_spans() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), expected);
        }
        for (seconds, expected) in [(0, "0s"), (185, "3m 5s"), (7440, "2h 4m"), (262_800, "3d 1h")]
        {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut columns = Columns::new(&["NAME", ">COUNT", "WHY"], Look::default());
        columns.row([text("a"), count(1_000_000), text("")]);
        columns.row([text("longer"), count(1), text("because")]);
        let expected =
            ["NAME        COUNT  WHY", "a       1,000,000", "longer          1  because"];
        assert_eq!(columns.lines(), expected);
    }

    #[test]
    fn columns_that_say_nothing_are_left_out() {
        let lines = |all| {
            let headers = ["NAME", "?>NONE", "?>SOME", "!>MORE"];
            let mut columns = Columns::new(&headers, Look { colours: false, all });
            columns.row([text("a"), count(0), count(0), count(7)]);
            columns.row([text("b"), count(0), count(5), count(7)]);
            columns.lines()
        };
        assert_eq!(lines(false), ["NAME  SOME", "a        0", "b        5"]);
        let all = ["NAME  NONE  SOME  MORE", "a        0     0     7", "b        0     5     7"];
        assert_eq!(lines(true), all);
    }
}
