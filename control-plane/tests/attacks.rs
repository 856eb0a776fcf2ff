//! Attacks on who may come in, and bombs for those who are in, against the built binary: forged tokens, pages of other sites, requests smuggled
//! beside an upgrade, messages that are small on the wire and large in memory. What protocols forbid is in `bad_input`, published holes of others
//! in `published_holes`.

mod support;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use support::raw::{Neighbours, Next, Raw, SOCKET_IO, frame, upgrade};
use support::{MANY, SECRET, Server, Setup, token};

fn part(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A token with this header, signed with HS256 and this secret whatever the header says.
fn forged(secret: &[u8], header: &str, claims: &str) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", part(signature))
}

fn claims(user: &str, lives_s: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    format!(r#"{{"sub":"{user}","exp":{}}}"#, now + lives_s)
}

/// Whether a plain WebSocket with these header lines is let in: it is greeted.
fn enters(server: &Server, path: &str, headers: &str) -> bool {
    let mut eve = Raw::connect(server.public);
    let request = upgrade(path);
    eve.send(format!("{}{headers}\r\n", &request[..request.len() - 2]).as_bytes());
    match eve.status() {
        Some(101) => match eve.next() {
            Next::Frame(1, _) => true,
            Next::Frame(8, reason) => {
                assert_eq!(reason.first_chunk().map(|code| u16::from_be_bytes(*code)), Some(4401), "{reason:?}");
                false
            }
            other => panic!("{other:?}"),
        },
        Some(401 | 403) => false,
        other => panic!("answered {other:?}"),
    }
}

/// Whether a token opens any of the doors: a plain WebSocket by query and by header, Socket.IO by its CONNECT.
fn opens(server: &Server, token: &str) -> bool {
    let by_query = enters(server, &format!("/talk?token={token}&roomId=r"), "");
    let by_header = enters(server, "/talk?roomId=r", &format!("Authorization: Bearer {token}\r\n"));
    let mut guest = Raw::open(server, SOCKET_IO);
    assert!(guest.text().starts_with('0'));
    guest.say(&format!(r#"40{{"token":"{token}"}}"#));
    let answer = guest.text();
    let by_connect = answer.starts_with("40");
    assert!(by_connect || answer.starts_with("44"), "{answer}");
    assert!(by_query == by_header && by_header == by_connect, "all doors agree");
    by_connect
}

#[test]
fn forged_tokens_open_no_door() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let (good, secret) = (claims("eve", 3_600), SECRET.as_bytes());
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    assert!(opens(&server, &forged(secret, hs256, &good)), "what the others are variations of");
    let unsigned = |header: &str| format!("{}.{}.", part(header), part(&good));
    let inner = forged(secret, hs256, &good);
    let kid = |kid: &str| forged(b"", &format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#), &good);
    let cases = [
        ("alg none", unsigned(r#"{"alg":"none"}"#)),
        ("alg nOnE", unsigned(r#"{"alg":"nOnE"}"#)),
        ("alg none with a signature", forged(secret, r#"{"alg":"none"}"#, &good)),
        ("no signature", unsigned(hs256)),
        ("alg HS512 under the signature of HS256", forged(secret, r#"{"alg":"HS512"}"#, &good)),
        ("another secret", forged(b"guessed", hs256, &good)),
        ("no secret", forged(b"", hs256, &good)),
        ("expired", forged(secret, hs256, &claims("eve", -1))),
        ("an expiry that is a text", forged(secret, hs256, r#"{"sub":"eve","exp":"4000000000"}"#)),
        ("not yet valid", forged(secret, hs256, r#"{"sub":"eve","exp":4000000000,"nbf":3900000000}"#)),
        ("a token within a token", forged(secret, r#"{"alg":"HS256","cty":"JWT"}"#, &inner)),
        ("a token within an unsigned one", format!("{}.{}.", part(r#"{"alg":"none","cty":"JWT"}"#), part(&inner))),
        ("a key of its own", forged(b"mine", r#"{"alg":"HS256","jwk":{"kty":"oct","k":"bWluZQ"}}"#, &good)),
        ("a key to be fetched", forged(b"mine", r#"{"alg":"HS256","jku":"http://127.0.0.1:1/keys","x5u":"http://127.0.0.1:1/x"}"#, &good)),
        ("a kid that is a path", kid("../../../../../../dev/null")),
        ("a kid that is SQL", kid("x' UNION SELECT ''--")),
        ("a kid that is a command", kid("|id")),
        ("an extension that must be understood", forged(secret, r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &good)),
        ("two algs", forged(secret, r#"{"alg":"none","alg":"HS256"}"#, &good)),
        ("other claims under a good signature", {
            let (message, signature) = inner.rsplit_once('.').expect("three parts");
            format!("{}.{}.{signature}", message.split_once('.').expect("two").0, part(claims("admin", 3_600)))
        }),
    ];
    for (what, token) in &cases {
        assert!(!opens(&server, token), "{what}");
    }
    neighbours.assert_well();
    server.assert_well();
}

#[test]
fn a_huge_token_is_refused_and_costs_nothing() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let mut guest = Raw::open(&server, SOCKET_IO);
    guest.text();
    // As long as a message may be, and rightly signed.
    let long =
        forged(SECRET.as_bytes(), r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"eve","exp":4000000000,"x":"{}"}}"#, "y".repeat(700_000)));
    guest.say(&format!(r#"40{{"token":"{long}"}}"#));
    guest.text_with("44{");
    let mut eve = Raw::connect(server.public);
    eve.send(upgrade(&format!("/talk?token={long}")).as_bytes());
    assert!(matches!(eve.status(), Some(400 | 414 | 431) | None));
    neighbours.assert_well();
    server.assert_well();
}

/// Whoever has the public key may not sign with it as if it were a secret; nor does the secret of earlier days count.
#[test]
fn a_public_key_is_no_secret() {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("a public key");
    let lines: Vec<String> =
        STANDARD.encode(der.as_ref()).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
    let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("public-{}.pem", std::process::id()));
    std::fs::write(&file, &pem).expect("the target folder can be written");
    let variables: &'static [(&str, &str)] = Box::leak(Box::new([
        ("URINGCAST_AUTH_ALGORITHM", "RS256"),
        ("URINGCAST_AUTH_PUBLIC_KEY_FILE", &*file.to_str().expect("a plain path").to_owned().leak()),
    ]));
    let mut server = Server::start(&Setup { limits: MANY, variables, ..Setup::default() });
    let good = claims("eve", 3_600);
    let message = format!("{}.{}", part(r#"{"alg":"RS256"}"#), part(&good));
    let mut signature = vec![0; pair.public_modulus_len()];
    let random = aws_lc_rs::rand::SystemRandom::new();
    pair.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("it signs");
    assert!(opens(&server, &format!("{message}.{}", part(&signature))), "what the key's owner has signed");
    for (what, secret) in [("PEM", pem.as_bytes()), ("PEM without its last newline", pem.trim_end().as_bytes()), ("DER", der.as_ref())] {
        for header in [r#"{"alg":"HS256"}"#, r#"{"alg":"RS256"}"#] {
            assert!(!opens(&server, &forged(secret, header, &good)), "the public key as a secret: {what}, {header}");
        }
    }
    assert!(!opens(&server, &forged(SECRET.as_bytes(), r#"{"alg":"HS256"}"#, &good)), "the secret of earlier days");
    let other = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let mut signature = vec![0; other.public_modulus_len()];
    other.sign(&aws_lc_rs::signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("it signs");
    assert!(!opens(&server, &format!("{message}.{}", part(&signature))), "another key");
    server.assert_well();
    let _ = std::fs::remove_file(file);
}

/// Browsers send cookies along with a WebSocket whatever page opens it.
#[test]
fn a_page_of_another_site_cannot_use_the_cookie() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let cookie = format!("Cookie: a=b; next-auth.session-token={}\r\n", token("alice"));
    let with = |origins: &[&str]| {
        let lines = origins.iter().fold(cookie.clone(), |mut lines, origin| {
            let _ = write!(lines, "Origin: {origin}\r\n");
            lines
        });
        enters(&server, "/talk?roomId=r", &lines)
    };
    assert!(with(&["https://app.example"]), "our own page");
    for origins in [
        &[][..],
        &["https://evil.example"],
        &["null"],
        &["http://app.example"],
        &["https://app.example.evil.example"],
        &["https://evil.example/https://app.example"],
        &["https://app.example:8443"],
        &["https://APP.example@evil.example"],
        &["https://app.example, https://evil.example"],
        &["https://evil.example", "https://app.example"],
        &["https://app.example", "https://evil.example"],
        &[""],
    ] {
        // Two lines are no request of a browser; whichever is looked at, the answer must not be yes for the other's page.
        let entered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| with(origins))).unwrap_or(false);
        assert!(!entered || origins.first() == Some(&"https://app.example"), "{origins:?}");
    }
    server.assert_well();
}

#[test]
fn nothing_is_smuggled_beside_an_upgrade() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let good = upgrade(&format!("/talk?token={}", token("eve")));
    let with = |lines: &str| format!("{}{lines}\r\n", &good[..good.len() - 2]);
    let hidden = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let cases = [
        ("length and chunked", with("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")),
        ("chunked", with("Transfer-Encoding: chunked\r\n")),
        ("chunked under a name with a space", with("Transfer-Encoding : chunked\r\n")),
        ("a folded coding", with("Transfer-Encoding:\r\n chunked\r\n")),
        ("a folded header", with("X-A: b\r\n\tc\r\n")),
        ("a body", with("Content-Length: 38\r\n")),
        ("two lengths", with("Content-Length: 0\r\nContent-Length: 38\r\n")),
        ("a second host", with("Host: evil\r\n")),
        ("a second key", with("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")),
        ("a second version", with("Sec-WebSocket-Version: 8\r\n")),
        ("bare line feeds", good.replace("\r\n", "\n")),
        ("one bare line feed", good.replacen("Host: localhost\r\n", "Host: localhost\n", 1)),
        ("a bare carriage return", with("X-A: b\rX-B: c\r\n")),
        ("a zero byte", with("X-A: \0\r\n")),
    ];
    for (what, head) in cases {
        let mut eve = Raw::connect(server.public);
        eve.send(format!("{head}0\r\n\r\n{hidden}").as_bytes());
        let status = eve.status();
        assert!(matches!(status, Some(400) | None), "{what}: answered {status:?}");
        assert_eq!(eve.status(), None, "{what}: nothing behind it is answered");
    }
    // Two headers that ask for different things: what is answered is one thing, and nothing behind it.
    let mut eve = Raw::connect(server.public);
    eve.send(format!("{}{hidden}", with("Upgrade: h2c\r\n")).as_bytes());
    let status = eve.status();
    assert!(matches!(status, Some(400 | 101 | 426)), "{status:?}");
    if status == Some(101) {
        assert_eq!(eve.close_code(), Some(1002), "what follows is read as frames and nothing else");
    }
    neighbours.assert_well();
    server.assert_well();
}

/// A guest who is in a room.
fn guest(server: &Server) -> Raw {
    let mut guest = Raw::guest(server);
    guest.say(r#"42/guests,1["room:join",{"roomId":"r"}]"#);
    guest.text_with("43/guests,1");
    guest
}

#[test]
fn attachment_bombs_do_not_go_off() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let before = server.resident();
    let binary = |bytes: usize| frame(0x82, &vec![7; bytes]);
    // Announced and not sent; more than may be; a length that is none; together more than a message may have.
    for (what, packets) in [
        ("two thousand million attachments", vec![frame(0x81, br#"452000000000-/guests,["message",{"_placeholder":true,"num":0}]"#)]),
        ("eleven attachments", vec![frame(0x81, br#"4511-/guests,["message"]"#)]),
        ("ten attachments of 400 kB", {
            let mut packets = vec![frame(0x81, br#"4510-/guests,["message",{"_placeholder":true,"num":0}]"#)];
            packets.extend((0..10).map(|_| binary(400_000)));
            packets
        }),
        ("an attachment that nobody announced", vec![binary(10)]),
    ] {
        let mut eve = guest(&server);
        packets.iter().for_each(|packet| eve.send(packet));
        assert!(eve.ends(), "{what}");
    }
    // 20,000 mentions of one attachment of 400 kB: by their numbers 8 GB.
    let mentions = vec![r#"{"_placeholder":true,"num":0}"#; 20_000].join(",");
    let mut eve = guest(&server);
    eve.say(&format!(r#"451-/guests,2["message",{{"roomId":"r","content":"x","metadata":{{"a":[{mentions}]}}}}]"#));
    eve.send(&binary(350_000));
    eve.send(&frame(0x81, br#"42/guests,3["room:join",{"roomId":"s"}]"#));
    // Refused, told to all or closed for; never multiplied.
    while let Next::Frame(opcode, payload) = eve.next() {
        if opcode == 1 && String::from_utf8_lossy(&payload).contains("43/guests,3") {
            break;
        }
    }
    // Announced and held back by many.
    let waiting: Vec<Raw> = (0..50)
        .map(|_| {
            let mut eve = guest(&server);
            eve.say(r#"4510-/guests,["message"]"#);
            eve.send(&binary(1_000));
            eve
        })
        .collect();
    neighbours.assert_well();
    drop(waiting);
    std::thread::sleep(Duration::from_millis(200));
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
    server.assert_well();
}

#[test]
fn json_bombs_do_not_go_off() {
    let mut server = Server::start(&Setup { limits: MANY, ..Setup::default() });
    let mut neighbours = Neighbours::move_in(&server);
    let before = server.resident();
    let keys: String = (0..60_000).map(|number| format!("\"k{number}\":0,")).collect();
    for payload in [
        format!(r#"["message",{{{keys}"z":1}}]"#),
        format!(r#"["message",{}]"#, "[".repeat(300_000)),
        format!(r#"["message",{}{}]"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000)),
        format!(r#"["message","{}"]"#, r"\u0000".repeat(150_000)),
        format!(r#"["message",{}]"#, "9".repeat(900_000)),
        format!(r#"["{}"]"#, "e".repeat(900_000)),
        r#"["message",1e999999999]"#.to_owned(),
    ] {
        for _ in 0..5 {
            let mut eve = guest(&server);
            eve.say(&format!("42/guests,2{payload}"));
            eve.say(r#"42/guests,3["room:join",{"roomId":"s"}]"#);
            while let Next::Frame(opcode, payload) = eve.next() {
                if opcode == 1 && String::from_utf8_lossy(&payload).contains("43/guests,3") {
                    break;
                }
            }
        }
    }
    neighbours.assert_well();
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {grown} bytes");
    server.assert_well();
}
