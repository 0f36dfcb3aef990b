//! `NumPy`'s `.npy`: a matrix of f32, written row by row.
//!
//! Source: `NumPy` Enhancement Proposal 1, "A simple file format for `NumPy` arrays", version 1.0 of the format.

use std::io::{self, Seek, SeekFrom, Write};

/// Bytes of the header, which has room for any number of rows and is a multiple of 64, as the format asks.
const HEADER: usize = 128;
/// Magic string, version, and the length of what follows.
const PREFIX: usize = 10;

/// Writes a `[rows, columns]` matrix of little-endian f32 whose number of rows is known at the end.
#[derive(Debug)]
pub struct NpyWriter<W> {
    out: W,
    columns: usize,
    rows: u64,
}

impl<W: Write + Seek> NpyWriter<W> {
    /// Begins a matrix at the beginning of `out`.
    pub fn new(mut out: W, columns: usize) -> io::Result<Self> {
        out.write_all(&header(0, columns))?;
        Ok(Self { out, columns, rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Panics
    ///
    /// When it does not have as many values as the matrix has columns.
    pub fn write_row(&mut self, row: &[f32]) -> io::Result<()> {
        assert_eq!(row.len(), self.columns, "a value for each column");
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.rows += 1;
        self.out.write_all(&bytes)
    }

    /// Writes the number of rows and gives back what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header(self.rows, self.columns))?;
        self.out.seek(SeekFrom::End(0))?;
        Ok(self.out)
    }
}

fn header(rows: u64, columns: usize) -> Vec<u8> {
    let shape = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(((HEADER - PREFIX) as u16).to_le_bytes());
    bytes.extend(shape.into_bytes());
    // Two numbers of twenty digits leave some of it.
    bytes.resize(HEADER - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_matrix_is_what_numpy_writes() {
        let mut writer = NpyWriter::new(Cursor::new(Vec::new()), 3).unwrap();
        writer.write_row(&[1.0, -2.5, 0.0]).unwrap();
        writer.write_row(&[f32::MAX, f32::MIN_POSITIVE, -0.0]).unwrap();
        let bytes = writer.finish().unwrap().into_inner();
        // `numpy.save` of the same matrix, byte for byte.
        let mut expected =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }".to_vec();
        expected.resize(127, b' ');
        expected.push(b'\n');
        expected.extend([0, 0, 0x80, 0x3f, 0, 0, 0x20, 0xc0, 0, 0, 0, 0]);
        expected.extend([0xff, 0xff, 0x7f, 0x7f, 0, 0, 0x80, 0, 0, 0, 0, 0x80]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_header_holds_the_largest_numbers() {
        for (rows, columns) in [(0, 0), (u64::MAX, usize::MAX)] {
            let bytes = header(rows, columns);
            assert_eq!((bytes.len(), bytes.last()), (HEADER, Some(&b'\n')));
            assert!(String::from_utf8_lossy(&bytes).contains(&format!("({rows}, {columns}), }}")));
        }
    }
}
