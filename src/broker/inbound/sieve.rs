//! Splits incoming bytes into frames (AMQP 0-9-1 specification, 4.2.3), and passes on what lapin can read.

use std::collections::HashMap;
use std::sync::Arc;

use super::content::{self, BEGINNING, Content};
use super::greeting::Greeting;
use super::load::Loads;
use super::method;
use crate::config::USUAL_FRAME;

/// A frame begins with its type, channel and payload size; one byte ends it after the payload.
const BEFORE: usize = 7;
const AFTER: usize = 1;
const FRAME_END: u8 = 0xce;
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// See the module.
pub(super) struct Sieve {
    state: State,
    /// A frame's bytes, until it can be judged.
    frame: Vec<u8>,
    /// Bytes of bodies to drop, by channel.
    left_out: HashMap<u16, u64>,
    /// As negotiated with the broker.
    largest_frame: usize,
    loads: Arc<Loads>,
    /// Learns of the broker's first method.
    pub(super) greeting: Option<Arc<Greeting>>,
}

enum State {
    /// A frame begins, or is collected until it is whole.
    Keep,
    /// So many bytes are passed on as they come.
    Pass(usize),
    /// So many bytes are dropped.
    Drop(usize),
    /// This is not AMQP: everything is passed on, for lapin to refuse.
    Raw,
}

impl Sieve {
    /// `largest_frame`: the size requested from the broker, in bytes, which may lower it. No header is larger than
    /// usual, whatever is negotiated.
    pub(super) fn new(largest_frame: u32, loads: Arc<Loads>) -> Self {
        let largest_frame = largest_frame.min(USUAL_FRAME) as usize;
        Self { state: State::Keep, frame: Vec::new(), left_out: HashMap::new(), largest_frame, loads, greeting: None }
    }

    /// Reads incoming bytes, and appends what lapin may read.
    pub(super) fn pass(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            let (count, next) = match self.state {
                State::Raw => {
                    output.extend_from_slice(input);
                    return;
                }
                State::Pass(left) => {
                    let count = left.min(input.len());
                    output.extend_from_slice(&input[..count]);
                    (count, State::Pass(left - count))
                }
                State::Drop(left) => {
                    let count = left.min(input.len());
                    (count, State::Drop(left - count))
                }
                State::Keep => {
                    let count = (self.wanted() - self.frame.len()).min(input.len());
                    self.frame.extend_from_slice(&input[..count]);
                    let next = if self.frame.len() == self.wanted() { self.judge(output) } else { State::Keep };
                    (count, next)
                }
            };
            self.state = match next {
                State::Pass(0) | State::Drop(0) => State::Keep,
                next => next,
            };
            input = &input[count..];
        }
    }

    /// How much of the frame is needed to judge it.
    fn wanted(&self) -> usize {
        match self.beginning() {
            None => BEFORE,
            Some((METHOD, _, size)) if BEFORE + size + AFTER <= self.largest_frame => BEFORE + size + AFTER,
            // RabbitMQ adds to headers, and never splits a header however large it becomes.
            Some((HEADER, _, size)) if BEFORE + size + AFTER <= 2 * self.largest_frame => BEFORE + size + AFTER,
            Some((HEADER, _, size)) => BEFORE + BEGINNING.min(size),
            Some(_) => BEFORE,
        }
    }

    /// Type, channel and size of the frame.
    fn beginning(&self) -> Option<(u8, u16, usize)> {
        let [kind, channel @ .., a, b, c, d] = *self.frame.first_chunk::<BEFORE>()?;
        Some((kind, u16::from_be_bytes(channel), u32::from_be_bytes([a, b, c, d]) as usize))
    }

    /// Judges what was collected, or goes on collecting.
    fn judge(&mut self, output: &mut Vec<u8>) -> State {
        let Some((kind, channel, size)) = self.beginning() else { return State::Keep };
        let whole = self.frame.len() == BEFORE + size + AFTER;
        let next = match kind {
            METHOD if whole => {
                let payload = &mut self.frame[BEFORE..BEFORE + size];
                method::replace_invalid_utf8(payload);
                if let [0, 10, 0, 10, ..] = *payload
                    && let Some(greeting) = self.greeting.take()
                {
                    greeting.server(payload);
                }
                if let [0, 10, 0, 30, _, _, a, b, c, d, ..] = *payload {
                    self.tuned(u32::from_be_bytes([a, b, c, d]));
                }
                output.extend_from_slice(&self.frame);
                State::Keep
            }
            HEADER => {
                let frame = BEFORE + size + AFTER;
                let kept = &self.frame[BEFORE..self.frame.len().min(BEFORE + size)];
                self.content(channel, content::check(kept, frame, self.largest_frame), output);
                State::Drop(frame - self.frame.len())
            }
            BODY if let Some(left) = self.left_out.get_mut(&channel) => {
                *left = left.saturating_sub(size as u64);
                if *left == 0 {
                    self.left_out.remove(&channel);
                }
                State::Drop(size + AFTER)
            }
            METHOD | BODY | HEARTBEAT => {
                output.extend_from_slice(&self.frame);
                State::Pass(size + AFTER)
            }
            _ => {
                output.extend_from_slice(&self.frame);
                State::Raw
            }
        };
        self.frame.clear();
        next
    }

    fn content(&mut self, channel: u16, content: Content, output: &mut Vec<u8>) {
        self.left_out.remove(&channel);
        match content {
            Content::Fit(load) => {
                self.loads.record(channel, load);
                output.extend_from_slice(&self.frame);
            }
            Content::Unfit { instead, body } => {
                if body > 0 {
                    self.left_out.insert(channel, body);
                }
                let size = u32::try_from(instead.len()).expect("some kilobytes");
                output.push(HEADER);
                output.extend(channel.to_be_bytes());
                output.extend(size.to_be_bytes());
                output.extend(instead);
                output.push(FRAME_END);
            }
        }
    }

    /// The broker has set the largest frame; 0 means no limit.
    fn tuned(&mut self, largest: u32) {
        if largest > 0 {
            self.largest_frame = self.largest_frame.min(largest as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[FRAME_END]].concat()
    }

    fn header(channel: u16, body: u64, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, channel, &[&[0, 60, 0, 0][..], &body.to_be_bytes(), properties].concat())
    }

    fn sieved(input: &[u8], chunk: usize) -> Vec<u8> {
        let mut sieve = Sieve::new(131_072, Arc::default());
        let mut output = Vec::new();
        input.chunks(chunk).for_each(|chunk| sieve.pass(chunk, &mut output));
        output
    }

    #[test]
    fn what_is_fit_comes_through_as_it_is_however_it_is_cut() {
        let input = [
            frame(METHOD, 0, b"\0\x0a\0\x0arest"),
            header(1, 5, &[0, 0]),
            frame(BODY, 1, b"hello"),
            frame(HEARTBEAT, 0, b""),
            header(2, 0, &[0x80, 0, 1, b't']),
        ]
        .concat();
        for chunk in 1..input.len() {
            assert!(sieved(&input, chunk) == input, "in chunks of {chunk}");
        }
    }

    #[test]
    fn a_large_body_is_left_out_on_its_channel_and_nothing_else_is() {
        let large = vec![b'x'; 80_000];
        let input = [
            header(1, 160_000, &[0, 0]),
            frame(BODY, 1, &large),
            header(2, 2, &[0, 0]),
            frame(BODY, 2, b"ok"),
            frame(BODY, 1, &large),
            header(1, 2, &[0, 0]),
            frame(BODY, 1, b"on"),
        ]
        .concat();
        let left =
            [header(2, 2, &[0, 0]), frame(BODY, 2, b"ok"), header(1, 2, &[0, 0]), frame(BODY, 1, b"on")].concat();
        for chunk in [1, 7, 4096, input.len()] {
            let output = sieved(&input, chunk);
            assert!(output.ends_with(&left) && output.len() < left.len() + 200, "in chunks of {chunk}");
            let text = String::from_utf8_lossy(&output);
            assert!(text.contains("the body has 160000 bytes"), "{text}");
        }
    }

    #[test]
    fn a_body_that_was_cut_short_does_not_eat_the_next_message() {
        let next = [header(1, 2, &[0, 0]), frame(BODY, 1, b"on")].concat();
        let input = [header(1, 160_000, &[0, 0]), frame(BODY, 1, b"begun"), next.clone()].concat();
        assert!(sieved(&input, 16).ends_with(&next));
    }

    #[test]
    fn a_header_larger_than_a_frame_is_never_kept_whole() {
        let tune =
            |largest: u32| frame(METHOD, 0, &[b"\0\x0a\0\x1e\x07\xff", &largest.to_be_bytes()[..], b"\0\x3c"].concat());
        let properties = |size: usize| {
            let text = [&u32::try_from(size).unwrap().to_be_bytes()[..], &vec![b'v'; size]].concat();
            let table = [b"\x01nS".to_vec(), text].concat();
            [&[0x20, 0][..], &u32::try_from(table.len()).unwrap().to_be_bytes(), &table].concat()
        };
        // All but the text takes 33 bytes.
        for (largest, size, is_fit) in [
            (8192, 8192 - 33, true),
            (8192, 8192 - 32, false),
            (131_072, 131_072 - 33, true),
            (131_072, 131_072 - 32, false),
            (0, 131_072 - 33, true),
            (1 << 20, 131_072 - 32, false),
            (131_072, 1 << 20, false),
        ] {
            let (tune, header) = (tune(largest), header(1, 2, &properties(size)));
            let end = [frame(BODY, 1, b"ok"), frame(HEARTBEAT, 0, b"")].concat();
            let output = sieved(&[&tune[..], &header, &end].concat(), 1000);
            if is_fit {
                assert!(output == [&tune[..], &header, &end].concat(), "{largest} {size}");
            } else {
                assert!(output.len() < 300 && output.ends_with(&frame(HEARTBEAT, 0, b"")), "{largest} {size}");
                let shown = String::from_utf8_lossy(&output);
                assert!(shown.contains(&format!("a frame of {} bytes", size + 33)), "{shown}");
            }
        }
    }

    #[test]
    fn what_is_no_amqp_is_left_to_lapin() {
        for input in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[HEADER; 40], &[0xff; 40]] {
            let output = sieved(input, 3);
            assert!(input[0] == HEADER || output == input, "{output:?}");
        }
    }
}
