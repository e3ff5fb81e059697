//! From "what each number gets" to BPF that finds it by halving.
//!
//! Numbers are kept as ranges, because most neighbours get the same answer: the default profile
//! has some 60 ranges, so six comparisons lead to any of them. The kernel runs a new filter once
//! for every number to find those that are always allowed, which makes the length of the path the
//! cost of installing a filter.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use seccompiler::sock_filter;

use super::compile::Program;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

/// Opcodes of classic BPF (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// SECCOMP_RET_ALLOW and SECCOMP_RET_KILL_PROCESS.
const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// What a range of numbers gets.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// This value.
    Word(u32),
    /// What this code returns.
    Code(Program),
}

/// The answer for every number.
pub(super) struct Dispatch {
    /// The first number of each range; a range ends where the next begins. Starts at 0.
    ranges: BTreeMap<u32, Answer>,
}

impl Dispatch {
    /// The same answer for all numbers.
    pub(super) fn new(word: u32) -> Self {
        Self { ranges: BTreeMap::from([(0, Answer::Word(word))]) }
    }

    /// Gives a range an answer, whatever it had.
    pub(super) fn set(&mut self, range: RangeInclusive<u32>, word: u32) {
        self.put(range, Answer::Word(word));
    }

    /// Gives one number an answer that depends on the arguments. The code must end in a return.
    pub(super) fn set_code(&mut self, number: u32, code: Program) {
        self.put(number..=number, Answer::Code(code));
    }

    fn put(&mut self, range: RangeInclusive<u32>, answer: Answer) {
        let (first, last) = range.into_inner();
        if let Some(next) = last.checked_add(1)
            && let Some((_, before)) = self.ranges.range(..=next).next_back()
        {
            let before = before.clone();
            self.ranges.insert(next, before);
        }
        let covered: Vec<u32> = self.ranges.range(first..=last).map(|(start, _)| *start).collect();
        for start in covered {
            self.ranges.remove(&start);
        }
        self.ranges.insert(first, answer);
    }

    /// The program: other architectures first, then the number.
    pub(super) fn assemble(self, audit: u32, listed_elsewhere: &[u32]) -> Program {
        let mut program = vec![step(LOAD_WORD, OFFSET_ARCH, 0, 0)];
        for other in listed_elsewhere {
            program.push(step(JUMP_EQUAL, *other, 0, 1));
            program.push(give(ALLOW));
        }
        program.push(step(JUMP_EQUAL, audit, 1, 0));
        program.push(give(KILL_PROCESS));
        program.push(step(LOAD_WORD, OFFSET_NUMBER, 0, 0));
        let mut merged: Vec<(u32, Answer)> = Vec::new();
        for (start, answer) in self.ranges {
            if merged.last().is_none_or(|(_, before)| *before != answer) {
                merged.push((start, answer));
            }
        }
        program.extend(halve(&merged));
        program
    }
}

/// Code that finds the range of the number in the accumulator.
fn halve(ranges: &[(u32, Answer)]) -> Program {
    match ranges {
        [] => Program::new(),
        [(_, Answer::Word(word))] => vec![give(*word)],
        [(_, Answer::Code(code))] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let low_code = halve(low);
            let mut code = Program::new();
            match u8::try_from(low_code.len()) {
                Ok(distance) => code.push(step(JUMP_AT_LEAST, high[0].0, distance, 0)),
                // A conditional jump reaches 255 instructions; a plain one reaches all.
                Err(_) => {
                    code.push(step(JUMP_AT_LEAST, high[0].0, 0, 1));
                    code.push(skip(low_code.len()));
                }
            }
            code.extend(low_code);
            code.extend(halve(high));
            code
        }
    }
}

/// The instruction that ends a filter with this value.
pub(super) fn give(word: u32) -> sock_filter {
    step(RETURN, word, 0, 0)
}

/// The instruction that jumps over the next `count` instructions.
pub(super) fn skip(count: usize) -> sock_filter {
    // Longer than the kernel takes is refused by length, so the cut value is never run.
    step(JUMP, u32::try_from(count).unwrap_or(u32::MAX), 0, 0)
}

fn step(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::interpreter::{Call, run};

    /// Many ranges and long code, against a plain list.
    #[test]
    fn finds_what_was_put() {
        let mut table = Dispatch::new(7);
        let mut plain: Vec<u32> = vec![7; 3000];
        let mut put = |first: u32, last: u32, word: u32| {
            table.set(first..=last, word);
            plain[first as usize..=last as usize].fill(word);
        };
        for start in (0..2900).step_by(7) {
            put(start, start + start % 5, 1000 + start % 3);
        }
        put(100, 1200, 5);
        put(600, 600, 6);
        let long: Program = std::iter::repeat_n(skip(0), 300).chain([give(4242)]).collect();
        table.set_code(601, long);
        plain[601] = 4242;
        table.set(2990..=u32::MAX, 9);
        plain[2990..].fill(9);
        let program = table.assemble(1, &[2]);
        for (number, word) in (0..).zip(&plain) {
            assert_eq!(run(&program, &Call { number, arch: 1, args: [0; 6] }), *word, "{number}");
        }
        assert_eq!(run(&program, &Call { number: u32::MAX, arch: 1, args: [0; 6] }), 9);
        assert_eq!(run(&program, &Call { number: 0, arch: 2, args: [0; 6] }), ALLOW);
        assert_eq!(run(&program, &Call { number: 0, arch: 3, args: [0; 6] }), KILL_PROCESS);
    }
}
