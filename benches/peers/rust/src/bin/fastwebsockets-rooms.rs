//! A rooms server on fastwebsockets (hyper for the handshake, tokio on one thread), as fast as we could make one that does no more than
//! satisfy the load generator (benches/src/dialect.rs): no token, no order over rooms, no history, no limits.
//!
//! A message is encoded once and only appended to its room; when everything that was ready to read has been read, each member gets one
//! write of all that its room has gathered. Only a member that does not take it owns a buffer and a task. `PORT` in the environment.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocket, WebSocketError};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What would make more than this wait for a member that does not read is dropped.
const WAITING_BYTES_MAX: usize = 16 << 20;

const WELCOME: &str = r#"{"type":"USER_JOINED","payload":{"message":"welcome"}}"#;
const PONG: &str = r#"{"type":"PONG","payload":{}}"#;

/// What a client says, as far as it matters: the content goes out as it came.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    payload: Place<'a>,
}

#[derive(Deserialize)]
struct Place<'a> {
    #[serde(rename = "roomId", borrow, default)]
    room: &'a str,
}

/// A connection's writing side.
struct Member {
    socket: OwnedWriteHalf,
    /// What the kernel did not take; non-empty exactly while a task of its own waits to write it.
    waiting: RefCell<Vec<u8>>,
}

#[derive(Default)]
struct Room {
    members: RefCell<Vec<Rc<Member>>>,
    /// Encoded frames since the last flush.
    gathered: RefCell<Vec<u8>>,
}

#[derive(Default)]
struct Server {
    rooms: RefCell<HashMap<String, Rc<Room>>>,
    /// Rooms in which something has been gathered.
    dirty: RefCell<Vec<Rc<Room>>>,
    flush: Notify,
    flush_is_due: Cell<bool>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::var("PORT")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let server = Rc::new(Server::default());
    LocalSet::new().block_on(&runtime, async move {
        tokio::task::spawn_local(Rc::clone(&server).flush_loop());
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            tokio::task::spawn_local(handshake(Rc::clone(&server), socket));
        }
    })
}

async fn handshake(server: Rc<Server>, socket: TcpStream) {
    let service = hyper::service::service_fn(move |request| {
        let answer = upgrade(Rc::clone(&server), request);
        async move { Ok::<_, Infallible>(answer) }
    });
    // A client that breaks off its handshake is nobody's loss.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
}

fn upgrade(server: Rc<Server>, mut request: Request<Incoming>) -> Response<Empty<Bytes>> {
    let Ok((answer, upgraded)) = fastwebsockets::upgrade::upgrade(&mut request) else {
        let mut answer = Response::new(Empty::new());
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        return answer;
    };
    tokio::task::spawn_local(async move {
        let Some(socket) = upgraded.await.ok().and_then(bare) else { return };
        server.serve(socket).await;
    });
    answer
}

/// The socket without hyper around it, so that writes go straight to it and the buffers of the handshake are gone.
fn bare(socket: WebSocket<TokioIo<Upgraded>>) -> Option<TcpStream> {
    let parts = socket.into_inner().into_inner().downcast::<TokioIo<TcpStream>>().ok()?;
    // Who speaks before the handshake is answered is not served; the load generator does not.
    parts.read_buf.is_empty().then(|| parts.io.into_inner())
}

impl Server {
    async fn serve(&self, socket: TcpStream) {
        let (readable, writable) = socket.into_split();
        let member = Rc::new(Member { socket: writable, waiting: RefCell::default() });
        let mut joined = Vec::new();
        member.say(OpCode::Text, WELCOME.as_bytes());
        // It ends in an error, whichever: the client is gone.
        let _ = self.listen(readable, &member, &mut joined).await;
        for room in joined {
            room.members.borrow_mut().retain(|other| !Rc::ptr_eq(other, &member));
        }
    }

    async fn listen(
        &self,
        socket: tokio::net::tcp::OwnedReadHalf,
        member: &Rc<Member>,
        joined: &mut Vec<Rc<Room>>,
    ) -> Result<(), WebSocketError> {
        let (mut incoming, _) = fastwebsockets::after_handshake_split(socket, tokio::io::sink(), Role::Server);
        // What the library answers by itself: pongs and the echo of a close frame.
        let mut answer = |frame: Frame<'_>| {
            member.say(frame.opcode, &frame.payload);
            std::future::ready(Ok::<(), io::Error>(()))
        };
        loop {
            let frame = incoming.read_frame(&mut answer).await?;
            match frame.opcode {
                OpCode::Text => self.hear(&frame.payload, member, joined),
                OpCode::Close => return Ok(()),
                _ => {}
            }
        }
    }

    fn hear(&self, text: &[u8], member: &Rc<Member>, joined: &mut Vec<Rc<Room>>) {
        let Ok(said) = serde_json::from_slice::<Said<'_>>(text) else { return };
        match said.kind {
            "CHAT_MESSAGE" => self.cast(said.payload.room, text),
            "PING" => member.say(OpCode::Text, PONG.as_bytes()),
            "SUBSCRIBE" => {
                let room = Rc::clone(self.rooms.borrow_mut().entry(said.payload.room.to_owned()).or_default());
                room.members.borrow_mut().push(Rc::clone(member));
                joined.push(room);
                member.say(OpCode::Text, format!(r#"{{"type":"SUBSCRIBED","payload":{{"roomId":"{}"}}}}"#, said.payload.room).as_bytes());
            }
            _ => {}
        }
    }

    fn cast(&self, room: &str, text: &[u8]) {
        let rooms = self.rooms.borrow();
        let Some(room) = rooms.get(room) else { return };
        let mut gathered = room.gathered.borrow_mut();
        if gathered.is_empty() {
            self.dirty.borrow_mut().push(Rc::clone(room));
        }
        append(OpCode::Text, text, &mut gathered);
        if !self.flush_is_due.replace(true) {
            self.flush.notify_one();
        }
    }

    /// Runs behind the readers that were ready when the first of them woke it: tokio takes its tasks in turn.
    async fn flush_loop(self: Rc<Self>) {
        loop {
            self.flush.notified().await;
            self.flush_is_due.set(false);
            for room in self.dirty.take() {
                let mut gathered = room.gathered.borrow_mut();
                room.members.borrow().iter().for_each(|member| member.write(&gathered));
                gathered.clear();
            }
        }
    }
}

impl Member {
    fn say(self: &Rc<Self>, opcode: OpCode, payload: &[u8]) {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        append(opcode, payload, &mut frame);
        self.write(&frame);
    }

    fn write(self: &Rc<Self>, bytes: &[u8]) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            if waiting.len() < WAITING_BYTES_MAX {
                waiting.extend_from_slice(bytes);
            }
            return;
        }
        // A broken socket is learnt by reading.
        let written = self.socket.try_write(bytes).unwrap_or(0);
        if written < bytes.len() {
            waiting.extend_from_slice(&bytes[written..]);
            tokio::task::spawn_local(Rc::clone(self).write_waiting());
        }
    }

    async fn write_waiting(self: Rc<Self>) {
        while self.socket.writable().await.is_ok() {
            let mut waiting = self.waiting.borrow_mut();
            match self.socket.try_write(&waiting) {
                Ok(written) => drop(waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            if waiting.is_empty() {
                return;
            }
        }
    }
}

fn append(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    let mut head = [0; 16];
    let length = Frame::new(true, opcode, None, Payload::Borrowed(payload)).fmt_head(&mut head);
    out.extend_from_slice(&head[..length]);
    out.extend_from_slice(payload);
}
