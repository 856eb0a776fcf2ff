//! What the back end is asked before something happens, and what it answers: plain data, made by a shard and carried by whoever drives it.
//! Nobody here knows how the back end is reached.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::ids::{EndpointId, Sid, UserId};

/// A question to the back end. The connection it is about waits, and nobody else.
#[derive(Debug)]
pub struct Inquiry {
    /// Of the connection.
    pub endpoint: EndpointId,
    /// What it wants to do.
    pub about: About,
}

/// What a connection wants to do.
#[derive(Debug)]
pub enum About {
    /// To be let in.
    Connect(Box<Caller>),
    /// To enter rooms: all of them or none.
    Join {
        /// Whose it is.
        user: UserId,
        /// Its id.
        conn: Sid,
        /// Their names, at least one.
        rooms: Vec<Arc<str>>,
    },
    /// To say something to others.
    Publish(Box<Proposal>),
    /// To say something that is not for those whom its user has blocked: who they are. Only the relay is asked this, and answers with
    /// [`super::parcel::Parcel::Blocked`].
    Blocked {
        /// The user.
        user: UserId,
    },
}

/// Who wants to be let in. Its debug form does not show what the client wrote.
#[derive(Default)]
pub struct Caller {
    /// The id that the connection will have.
    pub id: Option<Sid>,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// Header of the request.
    pub origin: Option<Box<str>>,
    /// Query of the request, without tokens.
    pub query: Box<str>,
    /// Header of the request.
    pub user_agent: Option<Box<str>>,
    /// Claims of the verified token, a JSON object; `None` where none was given, or none is asked for.
    pub claims: Option<Box<str>>,
}

impl Caller {
    /// Bytes it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        let texts = [self.origin.as_deref(), Some(&*self.query), self.user_agent.as_deref(), self.claims.as_deref()];
        texts.into_iter().flatten().map(str::len).sum()
    }
}

impl About {
    /// Kinds there are.
    pub(crate) const KINDS: usize = 4;

    /// Which of the kinds it is, from 0.
    pub(crate) fn kind(&self) -> usize {
        match self {
            About::Connect(_) => 0,
            About::Join { .. } => 1,
            About::Publish(_) => 2,
            About::Blocked { .. } => 3,
        }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

/// What somebody wants to say. Its debug form does not show what that is.
pub struct Proposal {
    /// Who.
    pub user: UserId,
    /// His connection; `None` where he comes without one (REST).
    pub conn: Option<Sid>,
    /// To which room; `None` where it is for one user, or for everybody.
    pub room: Option<Arc<str>>,
    /// Event of Socket.IO, type of a plain dialect.
    pub event: Box<str>,
    /// JSON, as the client wrote it. Binary arguments are placeholders in it.
    pub data: Box<str>,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Proposal");
        shown.field("conn", &self.conn).field("event", &self.event).field("data_bytes", &self.data.len()).finish_non_exhaustive()
    }
}

/// The back end's answer.
#[derive(Debug)]
pub enum Ruling {
    /// It may, with these changes.
    Allowed(Changes),
    /// It may not. What stands here is for the client.
    Refused(Option<Box<str>>),
    /// Nobody could say, or not in time: it may not now.
    Unavailable,
}

/// What the back end puts in the place of what the client brought. Its debug form does not show data of messages.
#[derive(Default)]
pub struct Changes {
    /// To [`About::Connect`]: another user; a checked name.
    pub user: Option<UserId>,
    /// To [`About::Connect`]: another name for others to see.
    pub name: Option<Box<str>>,
    /// To [`About::Connect`]: other rooms that the user may enter (collab: documents).
    pub rooms: Option<Vec<String>>,
    /// To [`About::Publish`]: other data; JSON.
    pub data: Option<Box<str>>,
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Changes");
        shown.field("user", &self.user).field("name", &self.name).field("rooms", &self.rooms);
        shown.field("data_bytes", &self.data.as_ref().map(|data| data.len())).finish()
    }
}

impl Ruling {
    /// As if nobody had been asked.
    pub fn allowed() -> Ruling {
        Ruling::Allowed(Changes::default())
    }

    /// Bytes of messages it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Ruling::Allowed(changes) => changes.data.as_ref().map_or(0, |data| data.len()),
            Ruling::Refused(reason) => reason.as_ref().map_or(0, |reason| reason.len()),
            Ruling::Unavailable => 0,
        }
    }

    /// Without a word.
    pub fn refused() -> Ruling {
        Ruling::Refused(None)
    }
}

/// A question that somebody has to answer. Whoever drops it has let nobody in: no way of forgetting it is a yes.
pub struct OpenInquiry {
    inquiry: Inquiry,
    reply: Option<Box<dyn FnOnce(Ruling) + Send>>,
}

impl OpenInquiry {
    /// `reply` is called once.
    pub fn new(inquiry: Inquiry, reply: impl FnOnce(Ruling) + Send + 'static) -> OpenInquiry {
        OpenInquiry { inquiry, reply: Some(Box::new(reply)) }
    }

    /// The question.
    pub fn inquiry(&self) -> &Inquiry {
        &self.inquiry
    }

    /// Answers it.
    pub fn answer(mut self, ruling: Ruling) {
        if let Some(reply) = self.reply.take() {
            reply(ruling);
        }
    }
}

impl Drop for OpenInquiry {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply(Ruling::Unavailable);
        }
    }
}

impl fmt::Debug for OpenInquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inquiry.fmt(f)
    }
}
