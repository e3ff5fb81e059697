//! Messages as bytes: the part of the D-Bus specification's marshalling that systemd's calls need.

/// Bytes before the header fields: byte order, type, flags, version, body length, serial, length of
/// the fields.
pub(super) const FIXED_BYTES: usize = 16;
/// Far above what systemd says to anybody, below what would hurt (the specification allows 128 MiB).
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Every header and struct begins at a multiple of it.
const ALIGNMENT: usize = 8;

const LITTLE_ENDIAN: u8 = b'l';
const VERSION: u8 = 1;
const TYPE_CALL: u8 = 1;
const TYPE_ERROR: u8 = 3;
const TYPE_SIGNAL: u8 = 4;

const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A value of a unit's property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) enum Value {
    Bool(bool),
    Text(String),
    Number(u64),
    /// `ay`: a set of processors as a mask, lowest byte first.
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(in crate::cgroup) struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    pub(in crate::cgroup) fn string(&mut self, text: &str) {
        self.signature.push('s');
        put_string(&mut self.bytes, text);
    }

    pub(in crate::cgroup) fn bool(&mut self, value: bool) {
        self.signature.push('b');
        put_u32(&mut self.bytes, value.into());
    }

    pub(in crate::cgroup) fn numbers(&mut self, numbers: &[u32]) {
        self.signature.push_str("au");
        put_array(&mut self.bytes, 4, |bytes| numbers.iter().for_each(|number| put_u32(bytes, *number)));
    }

    /// `a(sv)`
    pub(in crate::cgroup) fn properties(&mut self, properties: &[(&str, Value)]) {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, ALIGNMENT, |bytes| {
            for (name, value) in properties {
                pad(bytes, ALIGNMENT);
                put_string(bytes, name);
                put_variant(bytes, value);
            }
        });
    }

    /// `a(sa(sv))` without any: the auxiliary units of StartTransientUnit.
    pub(in crate::cgroup) fn no_auxiliary_units(&mut self) {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, ALIGNMENT, |_| {});
    }
}

fn put_variant(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(value) => {
            put_signature(bytes, "b");
            put_u32(bytes, (*value).into());
        }
        Value::Text(text) => {
            put_signature(bytes, "s");
            put_string(bytes, text);
        }
        Value::Number(number) => {
            put_signature(bytes, "t");
            put_u64(bytes, *number);
        }
        Value::Bytes(list) => {
            put_signature(bytes, "ay");
            put_array(bytes, 1, |bytes| bytes.extend_from_slice(list));
        }
        Value::Numbers(list) => {
            put_signature(bytes, "au");
            put_array(bytes, 4, |bytes| list.iter().for_each(|number| put_u32(bytes, *number)));
        }
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_u32(bytes: &mut Vec<u8>, value: u32) {
    pad(bytes, 4);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    pad(bytes, 8);
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    put_u32(bytes, length(text.len()));
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
}

fn put_signature(bytes: &mut Vec<u8>, signature: &str) {
    bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(signature.as_bytes());
    bytes.push(0);
}

/// The length counts from the first element, after its padding.
fn put_array(bytes: &mut Vec<u8>, alignment: usize, fill: impl FnOnce(&mut Vec<u8>)) {
    put_u32(bytes, 0);
    let place = bytes.len() - 4;
    pad(bytes, alignment);
    let start = bytes.len();
    fill(bytes);
    let count = length(bytes.len() - start);
    bytes[place..place + 4].copy_from_slice(&count.to_le_bytes());
}

/// Everything we send is far below 4 GiB.
fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Which method.
pub(super) struct Call {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
    pub(super) member: &'static str,
}

impl Call {
    pub(super) fn new(
        destination: &'static str,
        path: &'static str,
        interface: &'static str,
        member: &'static str,
    ) -> Self {
        Self { destination, path, interface, member }
    }

    /// The message; a direct connection knows no destinations.
    pub(super) fn encode(&self, serial: u32, body: Body, direct: bool) -> Vec<u8> {
        let mut bytes = vec![LITTLE_ENDIAN, TYPE_CALL, 0, VERSION];
        put_u32(&mut bytes, length(body.bytes.len()));
        put_u32(&mut bytes, serial);
        put_array(&mut bytes, ALIGNMENT, |bytes| {
            let mut field = |code: u8, kind: &str, text: &str| {
                pad(bytes, ALIGNMENT);
                bytes.push(code);
                put_signature(bytes, kind);
                if kind == "g" { put_signature(bytes, text) } else { put_string(bytes, text) }
            };
            field(FIELD_PATH, "o", self.path);
            field(FIELD_INTERFACE, "s", self.interface);
            field(FIELD_MEMBER, "s", self.member);
            if !direct {
                field(FIELD_DESTINATION, "s", self.destination);
            }
            if !body.signature.is_empty() {
                field(FIELD_SIGNATURE, "g", &body.signature);
            }
        });
        pad(&mut bytes, ALIGNMENT);
        bytes.extend_from_slice(&body.bytes);
        bytes
    }
}

/// How many bytes follow the fixed part; `None` if it is no message, or one too long.
pub(super) fn rest_bytes(fixed: &[u8; FIXED_BYTES]) -> Option<usize> {
    if fixed[0] != LITTLE_ENDIAN || fixed[3] != VERSION {
        return None;
    }
    let body = u32_at(fixed, 4)? as usize;
    let fields = u32_at(fixed, 12)? as usize;
    let rest = fields.checked_next_multiple_of(ALIGNMENT)?.checked_add(body)?;
    (rest <= MESSAGE_BYTES_MAX).then_some(rest)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A message that was received.
#[derive(Debug)]
pub(super) struct Message {
    kind: u8,
    member: String,
    error_name: String,
    reply_serial: u32,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    pub(super) fn decode(bytes: Vec<u8>) -> Option<Self> {
        let body_length = u32_at(&bytes, 4)? as usize;
        let body = bytes.get(bytes.len().checked_sub(body_length)?..)?.to_vec();
        let mut made = Self {
            kind: *bytes.get(1)?,
            member: String::new(),
            error_name: String::new(),
            reply_serial: 0,
            signature: String::new(),
            body,
        };
        let end = FIXED_BYTES.checked_add(u32_at(&bytes, 12)? as usize)?;
        let mut reader = Reader { bytes: bytes.get(..end)?, at: FIXED_BYTES };
        while reader.at < end {
            reader.align(ALIGNMENT)?;
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (FIELD_MEMBER, "s") => made.member = reader.string()?,
                (FIELD_ERROR_NAME, "s") => made.error_name = reader.string()?,
                (FIELD_REPLY_SERIAL, "u") => made.reply_serial = reader.u32()?,
                (FIELD_SIGNATURE, "g") => made.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.string()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return None,
            }
        }
        Some(made)
    }

    pub(super) fn answers(&self, serial: u32) -> bool {
        self.reply_serial == serial && self.kind != TYPE_SIGNAL
    }

    pub(super) fn error(&self) -> Option<String> {
        (self.kind == TYPE_ERROR).then(|| self.error_name.clone())
    }

    pub(super) fn is_signal(&self, member: &str) -> bool {
        self.kind == TYPE_SIGNAL && self.member == member
    }

    /// The strings and paths at the beginning of the body, numbers left out.
    pub(super) fn strings(&self) -> Vec<String> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut found = Vec::new();
        for kind in self.signature.chars() {
            let read = match kind {
                's' | 'o' => reader.string().map(|text| found.push(text)),
                'u' | 'i' | 'b' => reader.u32().map(drop),
                _ => None,
            };
            if read.is_none() {
                break;
            }
        }
        found
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        (self.at <= self.bytes.len()).then_some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        let value = u32_at(self.bytes, self.at)?;
        self.at += 4;
        Some(value)
    }

    fn string(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        self.text(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        self.text(length)
    }

    /// Text and the zero byte after it.
    fn text(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let text = std::str::from_utf8(self.bytes.get(self.at..end)?).ok()?.to_owned();
        (*self.bytes.get(end)? == 0).then(|| self.at = end + 1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Option<Message> {
        let fixed: &[u8; FIXED_BYTES] = bytes.get(..FIXED_BYTES)?.try_into().ok()?;
        (bytes.len() == FIXED_BYTES + rest_bytes(fixed)?).then_some(())?;
        Message::decode(bytes.to_vec())
    }

    fn call() -> Vec<u8> {
        let mut body = Body::default();
        body.string("unit");
        body.bool(true);
        body.properties(&[
            ("PIDs", Value::Numbers(vec![1, 2])),
            ("Slice", Value::Text("a.slice".into())),
            ("AllowedCPUs", Value::Bytes(vec![3])),
            ("CPUWeight", Value::Number(5)),
        ]);
        body.no_auxiliary_units();
        Call::new("a.b", "/a", "a.b.C", "Go").encode(7, body, false)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let message = decoded(&call()).unwrap();
        assert_eq!((message.member.as_str(), message.signature.as_str()), ("Go", "sba(sv)a(sa(sv))"));
        assert_eq!(message.strings(), ["unit"]);
    }

    #[test]
    fn no_prefix_and_no_changed_byte_makes_it_panic() {
        let whole = call();
        for length in 0..whole.len() {
            assert!(decoded(&whole[..length]).is_none(), "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                // Anything but a panic.
                let _ = decoded(&changed).map(|message| message.strings());
                let _ = Message::decode(changed);
            }
        }
    }

    #[test]
    fn a_message_too_long_is_none() {
        let mut fixed = [0_u8; FIXED_BYTES];
        fixed[..4].copy_from_slice(&[LITTLE_ENDIAN, TYPE_SIGNAL, 0, VERSION]);
        fixed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(rest_bytes(&fixed), None);
    }
}
