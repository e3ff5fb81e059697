//! Against buses that behave badly, and a small one that behaves.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

fn bus(serve: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, Vec<Address>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    (dir, vec![Address { path, direct: true }])
}

fn refused(addresses: &[Address]) -> BusError {
    Connection::open(addresses).err().expect("nobody should have let us in")
}

/// Lets the client in.
fn let_in(stream: &mut UnixStream) {
    let mut greeting = [0_u8; 16];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"\0AUTH EXTERNAL\r\n");
    stream.write_all(b"DATA\r\n").unwrap();
    let mut data = [0_u8; 6];
    stream.read_exact(&mut data).unwrap();
    stream.write_all(b"OK 1234\r\n").unwrap();
    let mut begin = [0_u8; 7];
    stream.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"BEGIN\r\n");
}

#[test]
fn f20_a_bus_that_hangs_is_given_up() {
    // It accepts and says nothing for as long as the client is there.
    let (_dir, addresses) = bus(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let error = refused(&addresses);
    assert!(matches!(&error, BusError::Io { step: "read", .. }), "{error:?}");
}

#[test]
fn f20_a_bus_that_nobody_serves_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    // Its queue is full of others.
    let mut others = Vec::new();
    rustix::net::listen(&listener, 0).unwrap();
    while let Ok(other) = {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(&path).unwrap()).map(|()| socket)
    } {
        others.push(other);
    }
    let error = refused(&[Address { path, direct: true }]);
    assert!(matches!(&error, BusError::Io { step: "connect", .. }), "{error:?}");
}

#[test]
fn a_bus_that_ends_or_refuses_or_raves_is_an_error() {
    let (_dir, addresses) = bus(drop);
    assert!(matches!(refused(&addresses), BusError::Io { .. }));
    let (_dir, addresses) = bus(|mut stream| stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap());
    assert!(matches!(refused(&addresses), BusError::Refused { .. } | BusError::Io { .. }));
    let (_dir, addresses) = bus(|mut stream| drop(stream.write_all(&[b'x'; 4096])));
    assert!(matches!(refused(&addresses), BusError::Protocol { .. } | BusError::Io { .. }));
    let (_dir, addresses) = bus(|mut stream| {
        let_in(&mut stream);
        drop(stream.write_all(&[0xff; 64]));
        // Until the client has seen it.
        drop(stream.read_to_end(&mut Vec::new()));
    });
    let mut connection = Connection::open(&addresses).unwrap();
    assert!(matches!(connection.manager("StopUnit", Body::default()), Err(BusError::Protocol { .. })));
    drop(connection);
    assert!(matches!(Connection::open(&[Address { path: "/nonexistent".into(), direct: true }]), Err(BusError::None)));
}

#[test]
fn an_error_of_systemd_keeps_its_name_and_words() {
    let (_dir, addresses) = bus(|mut stream| {
        let_in(&mut stream);
        let mut fixed = [0_u8; wire::FIXED_BYTES];
        stream.read_exact(&mut fixed).unwrap();
        let mut rest = vec![0; wire::rest_bytes(&fixed).unwrap()];
        stream.read_exact(&mut rest).unwrap();
        stream.write_all(&wire_error()).unwrap();
    });
    let mut connection = Connection::open(&addresses).unwrap();
    let error = connection.manager("StopUnit", Body::default()).unwrap_err();
    assert_eq!(error.to_string(), "StopUnit fails: a.Error: not today");
}

/// An error that answers message 1: its header fields by hand, then a string.
fn wire_error() -> Vec<u8> {
    let mut bytes = vec![b'l', 3, 0, 1, 14, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    let mut fields: Vec<u8> = vec![5, 1, b'u', 0, 1, 0, 0, 0];
    fields.extend([4, 1, b's', 0, 7, 0, 0, 0]);
    fields.extend(b"a.Error\0");
    fields.extend([8, 1, b'g', 0, 1, b's', 0]);
    bytes[12] = u8::try_from(fields.len()).unwrap();
    fields.resize(fields.len().next_multiple_of(8), 0);
    bytes.extend(fields);
    bytes.extend([9, 0, 0, 0]);
    bytes.extend(b"not today\0");
    bytes
}

#[test]
fn addresses() {
    assert_eq!(path_of("unix:path=/run/user/5/bus,guid=x").unwrap(), Path::new("/run/user/5/bus"));
    for bad in ["unix:abstract=/tmp/x", "tcp:host=x", "unix:path=relative", ""] {
        assert_eq!(path_of(bad), None, "{bad}");
    }
}
