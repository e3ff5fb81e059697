//! Who is in a network, and what each of its members may ask about the others: one packet in, a
//! verdict out. Pure, because hostile containers choose the bytes.
//!
//! Invariant: a member hears of the members of its own networks and of nobody else; a stranger hears
//! nothing. No answer is longer than what the asker can take.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde::{Deserialize, Serialize};

/// Members come and go, and their addresses with them.
const TTL_S: u32 = 5;
/// RFC 1035, section 4.2.1: what a datagram without EDNS may hold.
const DATAGRAM_BYTES: u16 = 512;
/// What fits into a packet of every device on the way.
const DATAGRAM_BYTES_MAX: u16 = 1232;
/// As many members of one name as an answer names.
const ANSWERS_MAX: usize = 64;
/// RFC 1035, section 4.1.1: the length of a header.
const HEADER_BYTES: usize = 12;
/// RFC 1035, section 4.2.2: what the length before a message can say.
const STREAM_BYTES: u16 = u16::MAX;

/// Is one container in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub container: String,
    /// Its name, its short id, its aliases.
    pub names: Vec<String>,
    pub ips: Vec<IpAddr>,
    /// Who is asked for it about everything else, instead of the host's servers.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
    /// It may ask about the rest of the world.
    pub outside: bool,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Answer(Vec<u8>),
    /// Somebody else knows; these servers, or the host's where there are none.
    Forward(Vec<IpAddr>),
    /// Not even a refusal is due.
    Drop,
}

/// What is known about the networks of an asker.
pub struct Directory<'a> {
    /// The members of the network on which it asks.
    pub members: &'a [Member],
    /// The members of its other networks.
    pub others: &'a dyn Fn(&str) -> Vec<Member>,
    pub owns: &'a dyn Fn(IpAddr) -> bool,
}

/// Decides about one packet of an asker.
pub fn decide(packet: &[u8], from: IpAddr, stream: bool, directory: &Directory<'_>) -> Verdict {
    let Ok(query) = Message::from_vec(packet) else {
        return malformed(packet);
    };
    if query.metadata.message_type != MessageType::Query {
        return Verdict::Drop;
    }
    let room = if stream { STREAM_BYTES } else { room(&query) };
    let Some(asker) = directory.members.iter().find(|member| member.ips.contains(&from)) else {
        return reply(&query, ResponseCode::Refused, Vec::new(), room);
    };
    if query.metadata.op_code != OpCode::Query {
        return reply(&query, ResponseCode::NotImp, Vec::new(), room);
    }
    let [question] = query.queries.as_slice() else {
        return reply(&query, ResponseCode::FormErr, Vec::new(), room);
    };
    let (name, kind) = (question.name(), question.query_type());
    if question.query_class() != DNSClass::IN {
        return reply(&query, ResponseCode::Refused, Vec::new(), room);
    }
    if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        return reply(&query, ResponseCode::Refused, Vec::new(), room);
    }
    if let Some(ip) = reverse(name)
        && (directory.owns)(ip)
    {
        let found = directory.members.iter().find(|member| member.ips.contains(&ip));
        let target = found.and_then(|member| member.names.first()).and_then(|name| Name::from_ascii(name).ok());
        let code = if target.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
        let data = target.filter(|_| kind == RecordType::PTR).map(|target| RData::PTR(PTR(target)));
        return reply(&query, code, records(name, data), room);
    }
    let plain = plain(name);
    let mut found = named(directory.members, &plain);
    if found.is_empty() {
        found = named(&(directory.others)(&asker.container), &plain);
    }
    if !found.is_empty() {
        let data = found.into_iter().filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => Some(RData::A(A(ip))),
            (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(ip))),
            _ => None,
        });
        return reply(&query, ResponseCode::NoError, records(name, data), room);
    }
    if asker.outside {
        return Verdict::Forward(asker.servers.clone());
    }
    reply(&query, ResponseCode::NXDomain, Vec::new(), room)
}

/// Says that nobody outside could be asked; nothing for what is no query.
pub fn failed(packet: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(packet).ok()?;
    match reply(&query, ResponseCode::ServFail, Vec::new(), DATAGRAM_BYTES) {
        Verdict::Answer(bytes) => Some(bytes),
        _ => None,
    }
}

/// A header that can be read is answered, so that honest but odd programs need not wait.
fn malformed(packet: &[u8]) -> Verdict {
    const RESPONSE_BIT: u8 = 0x80;
    const FORMAT_ERROR: u8 = 1;
    match packet.get(..HEADER_BYTES) {
        Some(&[a, b, flags, ..]) if flags & RESPONSE_BIT == 0 => {
            let mut answer = vec![0; HEADER_BYTES];
            answer[..4].copy_from_slice(&[a, b, flags | RESPONSE_BIT, FORMAT_ERROR]);
            Verdict::Answer(answer)
        }
        _ => Verdict::Drop,
    }
}

fn room(query: &Message) -> u16 {
    let asked = query.edns.as_ref().map_or(DATAGRAM_BYTES, hickory_proto::op::Edns::max_payload);
    asked.clamp(DATAGRAM_BYTES, DATAGRAM_BYTES_MAX)
}

fn reply(query: &Message, code: ResponseCode, answers: Vec<Record>, room: u16) -> Verdict {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.metadata.authoritative = code == ResponseCode::NoError;
    // One question at most goes back: more would make us an amplifier.
    answer.add_queries(query.queries.iter().take(1).cloned());
    answer.add_answers(answers);
    let Ok(mut bytes) = answer.to_vec() else { return Verdict::Drop };
    if bytes.len() > usize::from(room) {
        answer.answers.clear();
        answer.metadata.truncation = true;
        let Ok(short) = answer.to_vec() else { return Verdict::Drop };
        bytes = short;
    }
    Verdict::Answer(bytes)
}

fn records(name: &Name, data: impl IntoIterator<Item = RData>) -> Vec<Record> {
    data.into_iter().take(ANSWERS_MAX).map(|data| Record::from_rdata(name.clone(), TTL_S, data)).collect()
}

/// Gives a name in lower case without the last dot.
fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn named(members: &[Member], name: &str) -> Vec<IpAddr> {
    let is_called = |member: &&Member| member.names.iter().any(|own| own.eq_ignore_ascii_case(name));
    members.iter().filter(is_called).flat_map(|member| member.ips.iter().copied()).collect()
}

/// Reads an address out of in-addr.arpa or ip6.arpa.
fn reverse(name: &Name) -> Option<IpAddr> {
    let text = plain(name);
    if let Some(rest) = text.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<u8> = rest.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.reverse();
        return <[u8; 4]>::try_from(parts).ok().map(IpAddr::from);
    }
    let rest = text.strip_suffix(".ip6.arpa")?;
    let digit = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 1);
    let mut digits: Vec<u8> = rest.split('.').map(digit).collect::<Option<_>>()?;
    digits.reverse();
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    <[u8; 16]>::try_from(bytes).ok().filter(|_| digits.len() == 32).map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    fn member(container: &str, names: &[&str], ip: &str, outside: bool) -> Member {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Member {
            container: container.into(),
            names,
            ips: vec![ip.parse().unwrap(), "fd00::9".parse().unwrap()],
            servers: Vec::new(),
            outside,
        }
    }

    fn members() -> Vec<Member> {
        vec![member("a", &["web"], "10.0.0.2", true), member("b", &["db", "store"], "10.0.0.3", false)]
    }

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn decided(packet: &[u8], from: &str) -> Verdict {
        decided_on(packet, from, false)
    }

    fn decided_on(packet: &[u8], from: &str, stream: bool) -> Verdict {
        let others = |asker: &str| match asker {
            "a" => vec![member("z", &["cache"], "10.9.0.9", true)],
            _ => Vec::new(),
        };
        let owns = |ip: IpAddr| ip.to_string().starts_with("10.0.0.");
        let list = members();
        let directory = Directory { members: &list, others: &others, owns: &owns };
        decide(packet, from.parse().unwrap(), stream, &directory)
    }

    fn answer(name: &str, kind: RecordType, from: &str) -> (ResponseCode, Vec<String>) {
        match decided(&question(name, kind), from) {
            Verdict::Answer(bytes) => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(message.metadata.id, 7);
                let data = message.answers.iter().map(|record| record.data.to_string()).collect();
                (message.metadata.response_code, data)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn members_find_each_other_by_every_name() {
        for name in ["db", "DB.", "store"] {
            assert_eq!(answer(name, RecordType::A, "10.0.0.2"), (ResponseCode::NoError, vec!["10.0.0.3".into()]));
        }
        assert_eq!(answer("db", RecordType::AAAA, "10.0.0.2").1, ["fd00::9"]);
        assert_eq!(answer("db", RecordType::MX, "10.0.0.2"), (ResponseCode::NoError, vec![]));
        assert_eq!(answer("3.0.0.10.in-addr.arpa", RecordType::PTR, "10.0.0.2").1, ["db."]);
        assert_eq!(answer("9.0.0.10.in-addr.arpa", RecordType::PTR, "10.0.0.2").0, ResponseCode::NXDomain);
    }

    #[test]
    fn a74_no_name_leaves_its_networks() {
        assert_eq!(answer("cache", RecordType::A, "10.0.0.2").1, ["10.9.0.9"], "an own second network");
        assert_eq!(answer("cache", RecordType::A, "10.0.0.3").0, ResponseCode::NXDomain, "somebody else's");
        assert_eq!(answer("db", RecordType::A, "10.0.0.77").0, ResponseCode::Refused, "a stranger");
        assert_eq!(answer("example.org", RecordType::A, "10.0.0.3").0, ResponseCode::NXDomain, "internal");
        assert_eq!(decided(&question("example.org", RecordType::A), "10.0.0.2"), Verdict::Forward(Vec::new()));
    }

    #[test]
    fn answers_are_no_longer_than_asked_for() {
        let many: Vec<Member> = (0..60).map(|n| member("x", &["db"], &format!("10.0.0.{}", n + 2), false)).collect();
        let (others, owns) = (|_: &str| Vec::new(), |_: IpAddr| false);
        let directory = Directory { members: &many, others: &others, owns: &owns };
        let from = "10.0.0.2".parse().unwrap();
        let packet = question("db", RecordType::A);
        let Verdict::Answer(short) = decide(&packet, from, false, &directory) else { panic!() };
        let message = Message::from_vec(&short).unwrap();
        assert!(message.metadata.truncation && message.answers.is_empty() && short.len() <= 512);
        let Verdict::Answer(long) = decide(&packet, from, true, &directory) else { panic!() };
        assert_eq!(Message::from_vec(&long).unwrap().answers.len(), 60);
    }

    /// A generator with a seed, so that a failure can be repeated (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((bits ^ (bits >> 31)) & 0xffff_ffff).unwrap()
        }
    }

    impl Random {
        fn byte(&mut self) -> u8 {
            u8::try_from(self.next() & 0xff).unwrap()
        }
    }

    #[test]
    fn a74_malformed_packets_are_survived() {
        const PACKETS: u32 = 200_000;
        let mut random = Random(0x0c0f_fee0);
        let seeds = [
            question("db", RecordType::A),
            question("a.very.long.name.example.org", RecordType::AAAA),
            question("3.0.0.10.in-addr.arpa", RecordType::PTR),
            question("cache", RecordType::ANY),
        ];
        let mut seen = [0_u32; 3];
        for _ in 0..PACKETS {
            let mut packet = seeds[random.next() % seeds.len()].clone();
            for _ in 0..=random.next() % 6 {
                match random.next() % 4 {
                    0 => packet.truncate(random.next() % (packet.len() + 1)),
                    1 => packet.extend((0..random.next() % 40).map(|n| u8::try_from(n).unwrap() ^ 0xc0)),
                    // A compression pointer into nowhere, or to itself.
                    2 if packet.len() > 14 => {
                        let place = 12 + random.next() % (packet.len() - 13);
                        packet[place] = 0xc0;
                        packet[place + 1] = random.byte();
                    }
                    _ if !packet.is_empty() => {
                        let place = random.next() % packet.len();
                        packet[place] = random.byte();
                    }
                    _ => {}
                }
            }
            // A member of a second network, where `cache` is; one of this network only; and a stranger.
            let (place, stream) = (random.next() % 3, random.next().is_multiple_of(2));
            let Verdict::Answer(bytes) = decided_on(&packet, ["10.0.0.2", "10.0.0.3", "10.0.0.77"][place], stream)
            else {
                continue;
            };
            assert!(bytes.len() <= 1232, "{packet:?}");
            assert!(bytes[2] & 0x80 != 0 && bytes[..2] == packet[..2], "{packet:?}");
            let Ok(answer) = Message::from_vec(&bytes) else { continue };
            let secret = RData::A(A([10, 9, 0, 9].into()));
            let leaks = answer.answers.iter().any(|record| record.data == secret);
            assert!(place == 0 || !leaks, "{packet:?} from {place}");
            assert!(place != 2 || answer.answers.is_empty(), "{packet:?} from a stranger");
            seen[place] += u32::from(!answer.answers.is_empty());
        }
        // The whole way was walked: many packets were still good questions.
        assert!(seen[0] > 1000 && seen[1] > 1000 && seen[2] == 0, "{seen:?}");
    }
}
