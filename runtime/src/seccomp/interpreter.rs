//! A small interpreter of classic BPF, so that tests can ask a filter without a kernel.

use seccompiler::sock_filter;

/// What the kernel shows a filter (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Call {
    pub(crate) number: u32,
    pub(crate) arch: u32,
    pub(crate) args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.arch.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        for arg in self.args {
            bytes.extend(arg.to_le_bytes());
        }
        let at = offset as usize;
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }
}

/// Runs one filter.
pub(crate) fn run(program: &[sock_filter], call: &Call) -> u32 {
    let mut accumulator = 0_u32;
    let mut at = 0_usize;
    loop {
        let step = &program[at];
        at += 1;
        let mut branch = |condition: bool| at += usize::from(if condition { step.jt } else { step.jf });
        match step.code {
            0x20 => accumulator = call.word(step.k),
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => branch(accumulator == step.k),
            0x25 => branch(accumulator > step.k),
            0x45 => branch(accumulator & step.k != 0),
            0x35 => branch(accumulator >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Runs a stack of filters as the kernel does: last first, the strictest action wins, and among
/// equal actions the one found first.
pub(crate) fn judge(programs: &[Vec<sock_filter>], call: &Call) -> u32 {
    let rank = |word: u32| (word & 0xffff_0000).cast_signed();
    let mut result = 0x7fff_0000;
    for program in programs.iter().rev() {
        let word = run(program, call);
        if rank(word) < rank(result) {
            result = word;
        }
    }
    result
}
