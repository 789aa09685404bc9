use super::*;
use crate::ring::RingOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

#[derive(Debug)]
struct Out(Vec<Vec<u8>>);

impl Gather for Out {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

#[derive(Debug)]
struct In(Vec<Vec<u8>>);

impl Scatter for In {
    fn spaces(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.0.iter_mut().map(Vec::as_mut_slice)
    }
}

struct Bench {
    ring: Ring,
    sockets: Sockets<Out, In>,
}

impl Bench {
    fn new() -> Self {
        Self {
            ring: Ring::new(RingOptions::default()).expect("io_uring"),
            sockets: Sockets::new(4),
        }
    }

    fn next(&mut self) -> SocketEvent<Out, In> {
        let mut completions = Vec::new();
        loop {
            self.ring.wait(None).expect("the ring works");
            self.ring.reap(&mut completions);
            assert!(
                completions.len() <= 2,
                "one at a time here, and the answer to a cancel"
            );
            let mut events = completions.drain(..).filter_map(|one| self.sockets.complete(one));
            if let Some(event) = events.next() {
                return event;
            }
        }
    }

    fn accept(&mut self, listener: &impl AsFd) -> Connection {
        assert!(self.sockets.accept(&mut self.ring, listener, 42));
        match self.next() {
            SocketEvent::Accepted { key: 42, result } => result.expect("a connection"),
            other => panic!("{other:?}"),
        }
    }

    fn receive(
        &mut self,
        from: &Connection,
        lengths: &[usize],
    ) -> (Vec<Vec<u8>>, Result<usize, SocketError>) {
        let memory = In(lengths.iter().map(|&length| vec![0; length]).collect());
        self.sockets
            .receive(&mut self.ring, from, 7, memory)
            .expect("room");
        match self.next() {
            SocketEvent::Received {
                key: 7,
                memory,
                result,
            } => (memory.0, result),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn bytes_go_both_ways_in_one_piece_or_several() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let unix = listen_unix(&path).expect("listens");
    let tcp = listen_tcp("127.0.0.1:0".parse().expect("an address")).expect("listens");
    let mut bench = Bench::new();
    let address = tcp.local_addr().expect("bound");
    let mut unix_client = UnixStream::connect(&path).expect("connects");
    let unix_server = bench.accept(&unix);
    let mut tcp_client = TcpStream::connect(address).expect("connects");
    let tcp_server = bench.accept(&tcp);
    assert_eq!(unix_server.peer(), Peer::Unix);
    assert_eq!(
        tcp_server.peer(),
        Peer::Tcp(tcp_client.local_addr().expect("bound"))
    );

    unix_client.write_all(b"0123456789").expect("written");
    let (pieces, result) = bench.receive(&unix_server, &[4, 100]);
    assert_eq!(result, Ok(10));
    assert_eq!((&pieces[0][..], &pieces[1][..6]), (&b"0123"[..], &b"456789"[..]));
    tcp_client.write_all(b"abc").expect("written");
    let (pieces, result) = bench.receive(&tcp_server, &[8]);
    assert_eq!((&pieces[0][..3], result), (&b"abc"[..], Ok(3)));

    let out = Out(vec![b"head".to_vec(), vec![9; 5000], b"tail".to_vec()]);
    bench
        .sockets
        .send(&mut bench.ring, &tcp_server, 8, out)
        .expect("room");
    assert!(matches!(
        bench.next(),
        SocketEvent::Sent {
            key: 8,
            result: Ok(5008),
            ..
        }
    ));
    let mut got = vec![0; 5008];
    tcp_client.read_exact(&mut got).expect("all of it");
    assert_eq!((&got[..4], &got[5004..]), (&b"head"[..], &b"tail"[..]));
    assert_eq!(bench.sockets.under_way(), 0);
}

#[test]
fn a_send_larger_than_the_socket_takes_goes_out_whole() {
    let (client, server) = UnixStream::pair().expect("a pair");
    let server = Connection::new(OwnedFd::from(server));
    let mut bench = Bench::new();
    let big = Out(vec![vec![5; 3 << 20], vec![6; 1 << 20]]);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        (&client).take(4 << 20).read_to_end(&mut got).expect("all of it");
        got
    });
    bench
        .sockets
        .send(&mut bench.ring, &server, 1, big)
        .expect("room");
    assert!(matches!(
        bench.next(),
        SocketEvent::Sent {
            result: Ok(4_194_304),
            ..
        }
    ));
    let got = reader.join().expect("read");
    assert!(got[..3 << 20].iter().all(|&byte| byte == 5) && got[3 << 20..].iter().all(|&byte| byte == 6));
}

#[test]
fn a_closed_peer_is_an_end_or_an_error_never_a_signal_or_a_hang() {
    let (client, server) = UnixStream::pair().expect("a pair");
    let server = Connection::new(OwnedFd::from(server));
    let mut bench = Bench::new();
    drop(client);
    assert_eq!(bench.receive(&server, &[8]).1, Ok(0));
    let out = Out(vec![b"to nobody".to_vec()]);
    bench
        .sockets
        .send(&mut bench.ring, &server, 1, out)
        .expect("room");
    match bench.next() {
        SocketEvent::Sent { result, .. } => assert_eq!(result, Err(SocketError(libc::EPIPE))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shutting_down_ends_a_receive_under_way() {
    let (_client, server) = UnixStream::pair().expect("a pair");
    let server = Connection::new(OwnedFd::from(server));
    let mut bench = Bench::new();
    let memory = In(vec![vec![0; 8]]);
    bench
        .sockets
        .receive(&mut bench.ring, &server, 3, memory)
        .expect("room");
    bench.ring.submit().expect("submitted");
    server.shut_down();
    assert!(matches!(
        bench.next(),
        SocketEvent::Received {
            key: 3,
            result: Ok(0),
            ..
        }
    ));
}

#[test]
fn a_full_table_gives_the_memory_back() {
    let (_client, server) = UnixStream::pair().expect("a pair");
    let server = Connection::new(OwnedFd::from(server));
    let mut bench = Bench::new();
    for key in 0..4 {
        let memory = In(vec![vec![0; 8]]);
        bench
            .sockets
            .receive(&mut bench.ring, &server, key, memory)
            .expect("room");
    }
    let refused = bench
        .sockets
        .receive(&mut bench.ring, &server, 4, In(vec![vec![1; 8]]));
    assert_eq!(refused.expect_err("full").0[0], [1; 8]);
    assert!(!bench.sockets.accept(&mut bench.ring, &server, 5));
    bench.ring.submit().expect("submitted");
    // Dropped with receives under way: their memory is leaked, which valgrind would see and tests cannot.
}

#[test]
fn an_accept_can_be_called_off() {
    let listener = listen_tcp("127.0.0.1:0".parse().expect("an address")).expect("listens");
    let mut bench = Bench::new();
    assert!(bench.sockets.accept(&mut bench.ring, &listener, 1));
    bench.ring.submit().expect("submitted");
    bench.sockets.cancel_accept(&mut bench.ring, 1);
    match bench.next() {
        SocketEvent::Accepted { key: 1, result } => {
            assert_eq!(result.map(|_| ()), Err(SocketError(libc::ECANCELED)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let first = listen_unix(&path).expect("listens");
    let error = listen_unix(&path).expect_err("somebody listens");
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    drop(first);
    assert!(path.exists(), "a dead listener leaves its socket behind");
    listen_unix(&path).expect("replaced");
    let file = directory.path().join("file");
    std::fs::write(&file, b"precious").expect("written");
    let error = listen_unix(&file).expect_err("no socket");
    assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
    assert!(file.exists());
}

#[test]
fn who_waits_for_a_socket_is_woken_by_bytes_by_room_and_by_the_end() {
    use std::os::unix::net::UnixStream;
    let (mut here, there) = UnixStream::pair().expect("a pair");
    let begun = std::time::Instant::now();
    wait_for(there.as_fd(), false, 20_000_000).expect("no error");
    assert!(begun.elapsed().as_millis() >= 20, "nothing came");
    let minute_ns = 60_000_000_000;
    wait_for(there.as_fd(), true, minute_ns).expect("there is room");
    Write::write_all(&mut here, b"x").expect("written");
    wait_for(there.as_fd(), false, minute_ns).expect("bytes");
    drop(here);
    wait_for(there.as_fd(), false, minute_ns).expect("the end");
}
