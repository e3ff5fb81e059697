//! Turns a layer blob into its archive, whichever of three ways it is compressed.
//!
//! The bytes must be what the media type says (T31): the first four decide, and disagreement is an
//! error. Concatenated gzip members and zstd frames are one stream; anything else behind the end
//! is damage.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use crate::layer::Compression;
use crate::limits;

/// A decoder of one blob.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<GzipMembers<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: BufRead> Decoder<R> {
    /// Starts to decode `reader`.
    pub fn new(compression: Compression, reader: R) -> io::Result<Self> {
        Ok(match compression {
            Compression::Plain => Decoder::Plain(reader),
            Compression::Gzip => Decoder::Gzip(Box::new(GzipMembers::new(reader))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
                decoder.window_log_max(limits::ZSTD_WINDOW_LOG_MAX)?;
                Decoder::Zstd(Box::new(decoder))
            }
        })
    }

    /// The compressed reader.
    pub fn into_inner(self) -> Option<R> {
        match self {
            Decoder::Plain(reader) => Some(reader),
            Decoder::Gzip(members) => members.decoder.map(GzDecoder::into_inner),
            Decoder::Zstd(decoder) => Some(decoder.finish()),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(members) => members.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// One gzip member after the other, counted: an empty member takes 20 bytes and much more work.
pub(crate) struct GzipMembers<R> {
    /// Absent only while one decoder is replaced by the next, or after that failed.
    decoder: Option<GzDecoder<R>>,
    members: u64,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(reader: R) -> Self {
        GzipMembers { decoder: Some(GzDecoder::new(reader)), members: 1 }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(decoder) = &mut self.decoder {
            let read = decoder.read(buffer)?;
            if read > 0 || decoder.get_mut().fill_buf()?.is_empty() {
                return Ok(read);
            }
            self.members += 1;
            if self.members > limits::COMPRESSED_MEMBERS_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many gzip members"));
            }
            self.decoder = self.decoder.take().map(|done| GzDecoder::new(done.into_inner()));
        }
        Ok(0)
    }
}

/// What the first bytes of a blob look like; anything unknown may be a plain archive, whose
/// headers have checksums.
pub(crate) fn sniff(start: &[u8]) -> Compression {
    const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [first, rest @ ..] if first & 0xf0 == 0x50 && rest.starts_with(&ZSTD_SKIPPABLE) => Compression::Zstd,
        _ => Compression::Plain,
    }
}

/// How many bytes [`sniff`] wants to see.
pub(crate) const SNIFF_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression as Level;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
        encoder.write_all(data).expect("write");
        encoder.finish().expect("finish")
    }

    fn decode(compression: Compression, blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(compression, blob)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn t15_members_and_frames() {
        let two = [gzip(b"hello "), gzip(b""), gzip(b"world")].concat();
        assert_eq!(decode(Compression::Gzip, &two).expect("valid"), b"hello world");
        let frames = [zstd::encode_all(&b"hello "[..], 1), zstd::encode_all(&b"world"[..], 1)];
        let mut blob = Vec::new();
        for frame in frames {
            blob.extend(frame.expect("encode"));
        }
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let blob = [skippable.clone(), blob, skippable].concat();
        assert_eq!(sniff(&blob), Compression::Zstd);
        assert_eq!(decode(Compression::Zstd, &blob).expect("valid"), b"hello world");
    }

    #[test]
    fn t14_damage() {
        let good = gzip(&b"some data that is compressed".repeat(100));
        assert!(decode(Compression::Gzip, &good).is_ok());
        for cut in (0..16).map(|part| good.len() * part / 16) {
            assert!(decode(Compression::Gzip, &good[..cut]).is_err(), "cut at {cut}");
        }
        assert!(decode(Compression::Gzip, &good[..good.len() - 8]).is_err(), "no trailer");
        for at in [good.len() - 1, good.len() - 5] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(Compression::Gzip, &bad).is_err(), "trailer byte {at}");
        }
        assert!(decode(Compression::Gzip, &[&good[..], b"garbage"].concat()).is_err());
        let zstd = zstd::encode_all(&b"abc".repeat(1000)[..], 1).expect("encode");
        for cut in 1..zstd.len() {
            assert!(decode(Compression::Zstd, &zstd[..cut]).is_err(), "cut at {cut}");
        }
        assert!(decode(Compression::Zstd, &[&zstd[..], b"garbage"].concat()).is_err());
    }

    #[test]
    fn t15_zstd_window() {
        let with_window = |log: u32| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
            encoder.window_log(log).expect("window");
            encoder.include_contentsize(false).expect("size");
            encoder.write_all(&vec![7; 1 << 20]).expect("write");
            encoder.finish().expect("finish")
        };
        assert!(decode(Compression::Zstd, &with_window(limits::ZSTD_WINDOW_LOG_MAX)).is_ok());
        assert!(decode(Compression::Zstd, &with_window(limits::ZSTD_WINDOW_LOG_MAX + 1)).is_err());
    }
}
