//! Whose fault it was, and what follows: the reasons for which connections are refused or closed and messages dropped, with the
//! close code a client sees and the label a metric carries. The codes are a public contract: `README.md` of the project lists them.

/// Makes a plain enum whose variants have a metric label, a dense index and a list of all.
macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them, in the order of [`Self::index`].
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// Position in [`Self::ALL`].
            pub fn index(self) -> usize {
                self as usize
            }
            /// The metric's `reason` label.
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label),+ }
            }
        }
    };
}

labelled! {
    /// Why a connection ended (`connections_closed_total{reason}`).
    CloseReason {
        /// The client said goodbye: close frame or Socket.IO DISCONNECT.
        Client = "client",
        /// The socket ended without a goodbye.
        Transport = "transport",
        /// A frame or packet that the protocol forbids.
        Protocol = "protocol",
        /// Text that is not UTF-8.
        Utf8 = "utf8",
        /// A message over the size limit.
        Oversize = "oversize",
        /// Reading slower than its messages arrive.
        SlowReader = "slow_reader",
        /// Over the message rate three windows in a row.
        Rate = "rate",
        /// No answer to a heartbeat.
        Heartbeat = "heartbeat",
        /// No namespace joined in time.
        ConnectTimeout = "connect_timeout",
        /// Let in unknown, and did not say in time who it is.
        AuthTimeout = "auth_timeout",
        /// No or a bad token where the dialect tells it after the upgrade.
        Unauthorized = "unauthorized",
        /// Not allowed to enter what the handshake names.
        Forbidden = "forbidden",
        /// The handshake lacks a parameter.
        BadHandshake = "bad_handshake",
        /// Too many connections of the user.
        UserLimit = "user_limit",
        /// The token expired.
        TokenExpired = "token_expired",
        /// Disconnected by the back end.
        Admin = "admin",
        /// Nothing but heartbeats came for so long that the back end had it cleaned up.
        Inactive = "inactive",
        /// The server is stopping.
        Shutdown = "shutdown",
    }
}

impl CloseReason {
    /// Close code and default reason text of a plain WebSocket; `None` where the peer is already gone or the code is an echo of its own.
    pub fn close_frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            CloseReason::Client | CloseReason::Transport | CloseReason::Heartbeat | CloseReason::ConnectTimeout => return None,
            CloseReason::Protocol => (1002, ""),
            CloseReason::Utf8 => (1007, ""),
            CloseReason::Oversize => (1009, ""),
            CloseReason::SlowReader => (4408, "Reading too slowly"),
            CloseReason::Rate => (4429, "Rate limit exceeded"),
            CloseReason::AuthTimeout => (4401, "Authentication timeout"),
            CloseReason::Unauthorized => (4401, "Unauthorized"),
            CloseReason::Forbidden => (4403, "Access denied"),
            CloseReason::BadHandshake => (1003, "Missing documentId or clientID"),
            CloseReason::UserLimit => (4429, "Maximum connection limit reached"),
            CloseReason::TokenExpired => (4401, "Token expired"),
            CloseReason::Admin => (4403, "Disconnected by administrator"),
            CloseReason::Inactive => (4410, "Inactive"),
            CloseReason::Shutdown => (1001, ""),
        })
    }
}

impl CloseReason {
    /// What the back end is told (`disconnect {reason}`): the words of Node's Socket.IO server where it has some for it.
    pub fn told(self) -> &'static str {
        match self {
            CloseReason::Client | CloseReason::Transport => "transport close",
            CloseReason::Protocol | CloseReason::Utf8 => "parse error",
            CloseReason::Oversize => "transport error",
            CloseReason::Heartbeat => "ping timeout",
            CloseReason::Admin | CloseReason::Inactive => "server namespace disconnect",
            CloseReason::Shutdown => "server shutting down",
            // Node's server ends nobody for these.
            CloseReason::SlowReader => "slow reader",
            CloseReason::Rate => "rate limit exceeded",
            CloseReason::ConnectTimeout => "connect timeout",
            CloseReason::AuthTimeout => "authentication timeout",
            CloseReason::Unauthorized => "unauthorized",
            CloseReason::Forbidden => "forbidden",
            CloseReason::BadHandshake => "bad handshake",
            CloseReason::UserLimit => "too many connections",
            CloseReason::TokenExpired => "token expired",
        }
    }
}

labelled! {
    /// Why a handshake was refused (`handshakes_refused_total{reason}`).
    Refusal {
        /// Not HTTP, or a head over its limits.
        BadRequest = "bad_request",
        /// The head did not come in time.
        Timeout = "timeout",
        /// No token, a bad one or an expired one.
        Unauthorized = "unauthorized",
        /// The back end does not want it, or could not be asked.
        Forbidden = "forbidden",
        /// Too many connections of the user.
        UserLimit = "user_limit",
        /// Too many connections or handshakes of the address.
        AddressLimit = "address_limit",
        /// The process holds as many connections as it may.
        Full = "full",
        /// More handshakes at once than are let in: it was told to come again.
        Busy = "busy",
        /// The server is stopping.
        Stopping = "stopping",
        /// A page whose origin is not allowed, where that is asked for.
        Origin = "origin",
        /// A Socket.IO namespace that is not served.
        Namespace = "namespace",
    }
}

labelled! {
    /// Why a connection was not recovered (`recoveries_refused_total{reason}`).
    RecoveryFault {
        /// It is not known, or was away too long.
        Unknown = "unknown",
        /// It is here, and answers.
        InUse = "in_use",
        /// It was on another shard, and the link was bound already.
        Elsewhere = "elsewhere",
        /// What it missed is not remembered whole.
        Forgotten = "forgotten",
        /// What it missed is more than may wait for a connection.
        TooMuch = "too_much",
        /// Its client is somebody else now.
        OtherUser = "other_user",
    }
}

labelled! {
    /// Why a message was dropped (`messages_dropped_total{reason}`).
    DropReason {
        /// Wrong shape.
        Invalid = "invalid",
        /// Over the rate.
        Rate = "rate",
        /// Not a member, not allowed.
        Forbidden = "forbidden",
        /// Queued for a connection that ended before it could be sent, or said by one that broke off before the back end had answered.
        Unsent = "unsent",
        /// The room was gone when the message reached its home, or there was no place for one that the back end asked for.
        NoRoom = "no_room",
        /// Volatile, and the connection's transport took nothing at that moment.
        Volatile = "volatile",
        /// Of a message of which receipts are wanted it was forgotten who got it, for want of space.
        Receipt = "receipt",
    }
}
labelled! {
    /// Why something did not pass between this host and others (`relay_dropped_total{reason}`).
    RelayDrop {
        /// Redis was away, and more was said meanwhile than is kept.
        Overflow = "overflow",
        /// Redis was away for longer than what was said is kept.
        Age = "age",
        /// It was sent, and Redis went away before it confirmed it.
        Unconfirmed = "unconfirmed",
        /// Redis has it, but fewer hosts listened than there are: one has just come, or is cut off from Redis itself.
        Unheard = "unheard",
        /// Another host has sent it, and it was not heard here: this host was cut off, or has just come back.
        Missed = "missed",
        /// Redis refused it: no memory, no permission.
        Refused = "refused",
        /// Nobody can read it: bytes of another form than their channel has.
        Malformed = "malformed",
        /// It is of a form that other hosts cannot be told.
        Unspeakable = "unspeakable",
        /// Other servers asked for more at once than is answered.
        Busy = "busy",
        /// It would have made an answer to another server too long.
        Answer = "answer",
        /// For a shard that does not take it.
        Shard = "shard",
        /// Redis sent faster than it could be taken.
        Flood = "flood",
    }
}
