//! Tables and numbers as people read them.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, Table};

/// A table without rules, whose columns line up and never wrap; `>` before a header aligns its
/// column right.
pub(super) struct Columns {
    table: Table,
    right: Vec<bool>,
}

impl Columns {
    pub(super) fn new(headers: &[&str], colours: bool) -> Self {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        if colours {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let right: Vec<bool> = headers.iter().map(|header| header.starts_with('>')).collect();
        let cells = headers
            .iter()
            .map(|header| Cell::new(header.trim_start_matches('>')).add_attribute(Attribute::Bold));
        table.set_header(cells.zip(&right).map(|(cell, &right)| align(cell, right)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        Self { table, right }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let aligned = cells.into_iter().zip(&self.right).map(|(cell, &right)| align(cell, right));
        self.table.add_row(aligned);
    }

    /// The lines, without blanks at their ends.
    pub(super) fn lines(&self) -> Vec<String> {
        self.table.lines().map(|line| line.trim_end().to_owned()).collect()
    }
}

fn align(cell: Cell, right: bool) -> Cell {
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
        let mut columns = Columns::new(&["NAME", ">COUNT", "WHY"], false);
        columns.row([text("a"), count(1_000_000), text("")]);
        columns.row([text("longer"), count(1), text("because")]);
        let expected =
            ["NAME        COUNT  WHY", "a       1,000,000", "longer          1  because"];
        assert_eq!(columns.lines(), expected);
    }
}
