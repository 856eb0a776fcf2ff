//! What one of everything costs: every number the model rests on, with its unit and where it comes from. A new measurement is a new value
//! here, or `--set NAME=VALUE` for a try.

/// One line of the table of constants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) source: &'static str,
}

macro_rules! constants {
    ($($name:ident = $value:literal $unit:literal, $source:literal;)*) => {
        /// The numbers, by name.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Constants { $(pub(crate) $name: f64),* }

        impl Constants {
            /// As measured or assumed.
            pub(crate) const NOW: Self = Self { $($name: $value),* };

            /// All of them, for people.
            pub(crate) fn rows(&self) -> Vec<Row> {
                vec![$(Row { name: stringify!($name), value: self.$name, unit: $unit, source: $source }),*]
            }

            /// Changes one by its name; false when there is none.
            pub(crate) fn set(&mut self, name: &str, value: f64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

// A source that begins with "capacity" is a line of results/2026-11-28-capacity.jsonl; "assumed" is what it says.
constants! {
    engine_bytes_plain = 1_000.0 "B a connection", "compare, idle: community 15,000; 2,500 when the rest was measured, before records were made small";
    engine_bytes_socketio = 870.0 "B a connection", "compare, idle: rooms 15,000; 2,450 when the rest was measured";
    kernel_bytes = 3_890.0 "B a connection", "capacity: slab_bytes_server_side, the server's end alone";
    skb_bytes = 1_280.0 "B a frame", "truesize of a small frame that is not acknowledged yet: sk_buff, head of 704, clone";
    accept_us_plain = 43.0 "µs a connection", "capacity community 100,020: TCP, upgrade, token, join a room of 10; at 15,000 36";
    accept_us_socketio = 64.0 "µs a connection", "capacity rooms 100,020; at 15,000 42";
    fleet_bytes = 840.0 "B a connection", "capacity community 15,000 with --redis, less without: what the relay remembers of who is where";
    fleet_join_us = 38.0 "µs a connection", "the same: asking Redis who is first, and telling it";
    heartbeat_us = 8.0 "µs a heartbeat", "capacity: server_cpu_us_per_heartbeat, ping out and pong in";
    message_us = 12.0 "µs a message", "README, echo 20,000: 14 to 19 less one delivery: read, parse, check, encode, cast";
    delivery_small_us = 9.3 "µs a delivery", "README, rooms 50,000: 10.5 a delivery less a tenth of message_us";
    delivery_large_us = 6.1 "µs a delivery", "capacity, broadcasts: one write each to everybody";
    delivery_more_us = 0.27 "µs a delivery", "capacity rooms, a user each: joining costs 680 µs more where 2,500 are told; README, fan-out max: 0.6 to 0.8 with the write";
    frame_bytes = 180.0 "B a delivery", "what the server adds to a content: id, author, room, time (transcripts of community and rooms)";
    status_bytes = 55.0 "B a delivery", "`user:status` of rooms (transcripts)";
    relay_bytes = 300.0 "B a message", "what the relay adds in Redis' and the adapter's format (assumed)";
    relay_send_us = 9.3 "µs a message", "benches/hosts/measure.mjs, saturated pubsub, 28,840 a second; streams 9.6 at 41,808";
    relay_receive_us = 3.4 "µs a message", "the same; streams 4.3";
    redis_publish_us = 7.2 "µs a message", "the same, 9.2 with two listeners, less two listeners; streams 11.6 with one reader";
    redis_listener_us = 1.0 "µs a listener", "benches/hosts/redis_listeners.py: 0.6 at 100 messages a turn, 1.0 at 10, 3 at 1";
    redis_consult_us = 28.0 "µs a question", "CPU of Redis 7.0 per join (32) and leaving (25), 4,000 connections of community on a fleet of one host";
    tls_us = 300.0 "µs a handshake", "ECDSA P-256, TLS 1.3, on whoever terminates it (assumed)";
}

/// Bytes of an Ethernet frame around an IP packet, with preamble and gap between frames, FCS included.
pub(crate) const ETHERNET_BYTES: f64 = 38.0;
/// IPv4 and TCP headers, the timestamp option included.
pub(crate) const TCP_IP_BYTES: f64 = 52.0;
/// The smallest frame on the wire: 64 bytes, preamble and gap.
pub(crate) const WIRE_BYTES_MIN: f64 = 84.0;
/// TLS 1.3 around a record: header, content type, tag.
pub(crate) const TLS_BYTES: f64 = 22.0;
/// Payload of a full segment.
pub(crate) const SEGMENT_BYTES: f64 = 1_448.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_found_by_its_name_and_has_a_source() {
        let mut constants = Constants::NOW;
        assert!(constants.set("kernel_bytes", 1.0) && !constants.set("luck", 1.0));
        let rows = constants.rows();
        assert!(rows.iter().any(|row| row.name == "kernel_bytes" && row.value == 1.0));
        assert!(rows.iter().all(|row| row.value > 0.0 && !row.unit.is_empty() && !row.source.is_empty()));
    }
}
