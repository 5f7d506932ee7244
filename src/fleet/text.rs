//! The lines of a file, as often as they are wanted. A file is read anew each time; what can be read only once, such as
//! standard input, is kept meanwhile, in memory as long as it is small.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tempfile::{SpooledTempFile, spooled_tempfile};

/// Of what can be read only once, in bytes: room for millions of ids, or for hundreds of thousands of whole jobs.
const LARGEST: usize = 256 * 1024 * 1024;
/// The part of it that is kept in memory.
const IN_MEMORY: usize = 4 * 1024 * 1024;
/// Longest line, in bytes: twice what a job may have.
const LONGEST: usize = 128 * 1024;

/// A text, by the path of its file; `-` is standard input.
#[derive(Debug)]
pub(super) struct Text {
    path: PathBuf,
    /// Once it was read.
    kept: Option<Kept>,
}

#[derive(Debug)]
enum Kept {
    File(File),
    Copy(SpooledTempFile),
}

impl Text {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), kept: None }
    }

    pub(super) fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        if self.is_standard_input() { "standard input".to_owned() } else { self.path.display().to_string() }
    }

    /// Hands over all lines with their numbers, from 1, until one breaks. What is wrong with a line that cannot be handed over ends
    /// the text.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn each_line(
        &mut self,
        take: impl FnMut(usize, Result<&str, String>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        match &mut self.kept {
            Some(Kept::File(file)) => {
                file.rewind()?;
                return each_line(file, take);
            }
            Some(Kept::Copy(copy)) => {
                copy.rewind()?;
                return each_line(copy, take);
            }
            None => {}
        }
        if self.is_standard_input() {
            return self.copy_and_read(io::stdin(), take);
        }
        let mut file = File::open(&self.path)?;
        // A shell hands over a FIFO for `<(command)`.
        if !file.metadata()?.is_file() {
            return self.copy_and_read(file, take);
        }
        each_line(&mut file, take)?;
        self.kept = Some(Kept::File(file));
        Ok(())
    }

    fn copy_and_read(
        &mut self,
        from: impl Read,
        take: impl FnMut(usize, Result<&str, String>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut copying = Copying { from, copy: spooled_tempfile(IN_MEMORY), left: LARGEST };
        each_line(&mut copying, take)?;
        self.kept = Some(Kept::Copy(copying.copy));
        Ok(())
    }
}

/// Keeps a copy of what is read.
struct Copying<R> {
    from: R,
    copy: SpooledTempFile,
    /// Bytes that may follow.
    left: usize,
}

impl<R: Read> Read for Copying<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self.left.checked_sub(count).ok_or_else(|| {
            let problem = format!("it has more than {LARGEST} bytes: expected fewer, or a file");
            io::Error::new(ErrorKind::FileTooLarge, problem)
        })?;
        let kept = self.copy.write_all(buffer.get(..count).unwrap_or_default());
        kept.map_err(|error| {
            let folder = std::env::temp_dir();
            io::Error::new(
                error.kind(),
                format!("no copy of it can be kept in {}: {error}; name a file", folder.display()),
            )
        })?;
        Ok(count)
    }
}

fn each_line(from: impl Read, mut take: impl FnMut(usize, Result<&str, String>) -> ControlFlow<()>) -> io::Result<()> {
    let mut from = BufReader::with_capacity(64 * 1024, from);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if from.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        // Editors of another system begin a file with a byte-order mark.
        let text = text.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(text);
        let read = match str::from_utf8(text) {
            _ if text.len() > LONGEST => Err(format!("the line has more than {LONGEST} bytes")),
            Ok(text) => Ok(text),
            Err(_) => Err("it is not in UTF-8: save the file as UTF-8".to_owned()),
        };
        let is_last = read.is_err();
        if take(number, read).is_break() || is_last {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Lines = Vec<(usize, String)>;

    /// The lines, and what is wrong with the last one.
    fn lines(from: impl Read) -> io::Result<(Lines, Option<String>)> {
        let (mut lines, mut problem) = (Vec::new(), None);
        each_line(from, |number, line| {
            match line {
                Ok(line) => lines.push((number, line.to_owned())),
                Err(why) => problem = Some(format!("{number}: {why}")),
            }
            ControlFlow::Continue(())
        })?;
        Ok((lines, problem))
    }

    #[test]
    fn lines_end_as_on_every_system_and_a_byte_order_mark_is_no_part_of_the_first() {
        let (read, problem) = lines("\u{feff}a\r\n\n\u{feff}b\nc".as_bytes()).unwrap();
        let expected = [(1, "a"), (2, ""), (3, "\u{feff}b"), (4, "c")].map(|(number, line)| (number, line.to_owned()));
        assert_eq!((read, problem), (expected.to_vec(), None));
    }

    #[test]
    fn what_is_not_in_utf_8_or_never_ends_is_not_read_to_its_end() {
        let (read, problem) = lines(&b"a\n\xb1\xb1\xbe\xa9\nb"[..]).unwrap();
        assert_eq!((read.len(), problem.unwrap()), (1, "2: it is not in UTF-8: save the file as UTF-8".to_owned()));
        let (_, problem) = lines(io::repeat(0)).unwrap();
        assert_eq!(problem.unwrap(), "1: the line has more than 131072 bytes");
        let (read, _) = lines(&[&[b'a'; LONGEST][..], b"\nb"].concat()[..]).unwrap();
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn what_can_be_read_once_is_kept_up_to_a_limit() {
        let mut copying = Copying { from: &b"i-0000\ni-0001"[..], copy: spooled_tempfile(1), left: 13 };
        let (read, _) = lines(&mut copying).unwrap();
        copying.copy.rewind().unwrap();
        assert_eq!((lines(copying.copy).unwrap().0, read.len()), (read, 2));
        let endless = Copying { from: &b"i-0000\ni-0001"[..], copy: spooled_tempfile(1), left: 12 };
        let told = lines(endless).unwrap_err().to_string();
        assert!(told.contains("more than 268435456 bytes: expected fewer, or a file"), "{told}");
    }
}
