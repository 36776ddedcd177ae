//! Tables and numbers for terminal output.

use anstyle::{Ansi256Color, Style};
use comfy_table::{CellAlignment, ColumnConstraint, Table};

/// A colour of a cell: one of the 256 of ECMA-48 terminals.
pub(super) type Colour = Ansi256Color;

/// Bad state.
pub(super) const RED: Colour = Ansi256Color(9);
/// Good state.
pub(super) const GREEN: Colour = Ansi256Color(10);
/// Doubtful state.
pub(super) const YELLOW: Colour = Ansi256Color(11);

/// Text of one cell of a table, and its colour.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

/// Marks before a header ([`Columns`]).
const MARKS: [char; 3] = ['?', '!', '>'];

/// Style of a table.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    /// Whether to write colours.
    pub(super) colours: bool,
    /// Whether to show every column, also those without information.
    pub(super) all: bool,
}

/// A table without rules. Columns are aligned and never wrap. Marks before a header: `>` aligns the
/// column right, `?` omits it where all its cells are empty (0, - or blank), and `!` omits it
/// unless every column is requested; `?` and `!` come first.
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

    /// Returns the lines, without trailing blanks.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        let shown: Vec<usize> =
            (0..self.headers.len()).filter(|&index| self.is_shown(index)).collect();
        let headers = shown.iter().filter_map(|&index| self.headers.get(index));
        table.set_header(headers.clone().map(|header| header.trim_start_matches(MARKS)));
        let cells = |row: &'_ Vec<Cell>| {
            shown.iter().filter_map(|&index| row.get(index).cloned()).collect::<Vec<Cell>>()
        };
        for row in &self.rows {
            table.add_row(cells(row).into_iter().map(|cell| cell.text));
        }
        for (column, header) in table.column_iter_mut().zip(headers) {
            column.set_cell_alignment(alignment(header));
            column.set_padding((0, 2));
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        let mut lines = table.lines().map(|line| line.trim_end().to_owned());
        if !self.look.colours {
            return lines.collect();
        }
        let title = lines.next().map(|line| styled(Style::new().bold(), &line));
        let rows = lines.zip(&self.rows).map(|(line, row)| with_colours(&line, &cells(row)));
        title.into_iter().chain(rows).collect()
    }

    fn is_shown(&self, index: usize) -> bool {
        let header = self.headers.get(index).copied().unwrap_or_default();
        let says_something =
            |row: &Vec<Cell>| row.get(index).is_some_and(|cell| !is_nothing(&cell.text));
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

fn alignment(header: &str) -> CellAlignment {
    let right = header.trim_start_matches(['?', '!']).starts_with('>');
    if right { CellAlignment::Right } else { CellAlignment::Left }
}

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Colours the cells of a line, which has their texts in order with blanks between them.
///
/// This follows the alignment of the columns: escape sequences in a cell would count as its width.
fn with_colours(mut line: &str, cells: &[Cell]) -> String {
    let mut out = String::new();
    for Cell { text, colour } in cells {
        let Some((before, after)) = line.split_once(text.as_str()) else { continue };
        out += before;
        match colour.filter(|_| !text.is_empty()) {
            Some(colour) => out += &styled(colour.on_default(), text),
            None => out += text,
        }
        line = after;
    }
    out + line
}

/// Creates a cell of text.
pub(super) fn text(text: impl ToString) -> Cell {
    Cell { text: text.to_string(), colour: None }
}

/// Creates a cell that also shows a good, doubtful or bad state by its colour.
pub(super) fn coloured(text: impl ToString, colour: Colour) -> Cell {
    Cell { text: text.to_string(), colour: Some(colour) }
}

/// Creates a cell with a count.
pub(super) fn count(number: u64) -> Cell {
    text(grouped(number))
}

/// Formats a number as `1,234,567`.
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

/// Formats seconds as `45s`, `3m 5s`, `2h 4m` or `3d 1h`.
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

    /// Colours change neither the columns nor any text, and mark only the intended cell.
    #[test]
    fn colours_do_not_move_columns() {
        let lines = |colours| {
            let look = Look { colours, all: false };
            let mut columns = Columns::new(&["NAME", ">N", "?NONE", "STATE", "WHY"], look);
            columns.row([
                text("1"),
                coloured(1, YELLOW),
                text(""),
                coloured("up", GREEN),
                text(""),
            ]);
            columns.row([text("déjà"), count(10), text(""), coloured("down", RED), text("down")]);
            columns.lines()
        };
        assert_eq!(lines(false), ["NAME   N  STATE  WHY", "1      1  up", "déjà  10  down   down"]);
        let expected = [
            "\x1b[1mNAME   N  STATE  WHY\x1b[0m",
            "1      \x1b[38;5;11m1\x1b[0m  \x1b[38;5;10mup\x1b[0m",
            "déjà  10  \x1b[38;5;9mdown\x1b[0m   down",
        ];
        assert_eq!(lines(true), expected);
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
