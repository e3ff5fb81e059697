//! Writes tar archives byte by byte, so that nothing keeps a test from writing a wrong one.

/// A header whose every field can be set; the checksum is made last.
#[derive(Clone)]
pub struct Head {
    block: [u8; 512],
}

impl Head {
    /// A ustar header with mode 0644, owner 0:0 and time 1,000,000,000.
    pub fn new(kind: u8, name: &[u8]) -> Head {
        let mut head = Head { block: [0; 512] };
        assert!(name.len() <= 100, "use a long name header");
        head.block[..name.len()].copy_from_slice(name);
        head.block[156] = kind;
        head.block[257..265].copy_from_slice(b"ustar\x0000");
        head.mode(if kind == b'5' { 0o755 } else { 0o644 }).uid(0).gid(0).size(0).mtime(1_000_000_000)
    }

    /// Sets bytes anywhere.
    pub fn raw(mut self, at: usize, bytes: &[u8]) -> Head {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn octal(self, at: usize, width: usize, value: u64) -> Head {
        let text = format!("{value:0width$o}\0", width = width - 1);
        self.raw(at, text.as_bytes())
    }

    pub fn mode(self, mode: u32) -> Head {
        self.octal(100, 8, mode.into())
    }

    pub fn uid(self, uid: u64) -> Head {
        self.octal(108, 8, uid)
    }

    pub fn gid(self, gid: u64) -> Head {
        self.octal(116, 8, gid)
    }

    pub fn size(self, size: u64) -> Head {
        self.octal(124, 12, size)
    }

    pub fn mtime(self, mtime: u64) -> Head {
        self.octal(136, 12, mtime)
    }

    pub fn device(self, major: u64, minor: u64) -> Head {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    pub fn link(self, target: &[u8]) -> Head {
        assert!(target.len() <= 100, "use a long link header");
        self.raw(157, target)
    }

    /// The block with its checksum.
    pub fn block(mut self) -> [u8; 512] {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.raw(148, format!("{sum:06o}\0 ").as_bytes()).block
    }
}

/// An archive that grows.
#[derive(Clone, Default)]
pub struct EvilTar(pub Vec<u8>);

impl EvilTar {
    pub fn new() -> EvilTar {
        EvilTar::default()
    }

    /// Appends a header and its body, padded.
    pub fn entry(self, head: Head, body: &[u8]) -> EvilTar {
        self.bytes(&head.block()).bytes(body).pad()
    }

    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> EvilTar {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Fills up to a whole block.
    pub fn pad(mut self) -> EvilTar {
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &str) -> EvilTar {
        self.file_bytes(name.as_bytes(), content.as_bytes())
    }

    pub fn file_bytes(self, name: &[u8], content: &[u8]) -> EvilTar {
        let (tar, name) = self.fit(name);
        tar.entry(Head::new(b'0', &name).size(content.len() as u64), content)
    }

    pub fn dir(self, name: &str) -> EvilTar {
        let (tar, name) = self.fit(name.as_bytes());
        tar.entry(Head::new(b'5', &name), b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> EvilTar {
        let (tar, name) = self.fit(name.as_bytes());
        let (tar, target) = tar.fit_link(target.as_bytes());
        tar.entry(Head::new(b'2', &name).link(&target), b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> EvilTar {
        let (tar, name) = self.fit(name.as_bytes());
        let (tar, target) = tar.fit_link(target.as_bytes());
        tar.entry(Head::new(b'1', &name).link(&target), b"")
    }

    /// Appends a PAX header with these records about the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> EvilTar {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key.as_bytes(), value)).collect();
        self.pax_raw(b'x', &body)
    }

    /// Appends a PAX header of either kind with any body.
    pub fn pax_raw(self, kind: u8, body: &[u8]) -> EvilTar {
        self.entry(Head::new(kind, b"PaxHeaders/x").size(body.len() as u64), body)
    }

    /// Appends a GNU long name (`L`) or long link (`K`).
    pub fn gnu_long(self, kind: u8, body: &[u8]) -> EvilTar {
        self.entry(Head::new(kind, b"././@LongLink").size(body.len() as u64), body)
    }

    /// The archive with its two zero blocks.
    pub fn end(self) -> Vec<u8> {
        self.bytes(&[0; 1024]).0
    }

    fn fit(self, name: &[u8]) -> (EvilTar, Vec<u8>) {
        if name.len() <= 100 {
            return (self, name.to_vec());
        }
        (self.gnu_long(b'L', &[name, b"\0"].concat()), name[..100].to_vec())
    }

    fn fit_link(self, target: &[u8]) -> (EvilTar, Vec<u8>) {
        if target.len() <= 100 {
            return (self, target.to_vec());
        }
        (self.gnu_long(b'K', &[target, b"\0"].concat()), target[..100].to_vec())
    }
}

/// One PAX record with its own length in front.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), &rest].concat()
}
