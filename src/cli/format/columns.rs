//! Columns as Docker aligns them: ten characters wide at least, three spaces between.

/// The least width of a column, the space behind it included.
const WIDTH_MIN: usize = 10;
/// Spaces between the widest cell and the next column.
const PADDING: usize = 3;

/// Aligns lines whose cells are separated by tabs; the last cell of a line is never padded.
pub fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> =
        lines.iter().flat_map(|line| line.split('\n')).map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let closed = rows.iter().filter(|row| column + 1 < row.len());
            closed.map(|row| row[column].chars().count() + PADDING).chain([WIDTH_MIN]).max().unwrap_or(WIDTH_MIN)
        })
        .collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < row.len() {
                let space = widths[column].saturating_sub(cell.chars().count());
                line.extend(std::iter::repeat_n(' ', space));
            }
        }
        text.push_str(line.trim_end_matches(' '));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_ten_wide_and_three_apart() {
        let lines = ["ID\tNAME\tX".to_owned(), "1234567890\té\t".to_owned()];
        assert_eq!(align(&lines), "ID           NAME      X\n1234567890   é\n");
    }
}
