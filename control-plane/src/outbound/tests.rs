//! The client against listeners of this process: what it sends, what it makes of answers, and that nothing it is told shows a secret.

use std::net::SocketAddr;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

const CERTIFICATE: &[u8] = include_bytes!("../../tests/tls/certificate.pem");
const KEY: &[u8] = include_bytes!("../../tests/tls/key.pem");

/// Long enough for the busiest machine.
const PLENTY: Bounds = Bounds { time: Duration::from_secs(30), answer_bytes: 64 };

/// A server that answers each request with the same bytes and passes on what it heard.
async fn server(answer: &'static str) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (heard, hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_all(stream, answer, heard.clone()));
        }
    });
    (address, hears)
}

/// Takes requests whose bodies come with their heads, and answers them until the peer leaves.
async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str, heard: mpsc::UnboundedSender<String>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut request = String::new();
        while !complete(&request) {
            match stream.read(&mut buffer).await {
                Ok(count) if count > 0 => request.push_str(&String::from_utf8_lossy(&buffer[..count])),
                _ => return,
            }
        }
        let _ = heard.send(request);
        if stream.write_all(answer.as_bytes()).await.is_err() || answer.is_empty() {
            return;
        }
    }
}

fn complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|value| value.parse().ok()));
    body.len() >= length.unwrap_or(0)
}

fn url(text: impl AsRef<str>) -> Url {
    text.as_ref().parse().expect("a URL")
}

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes()).expect("not empty")
}

#[tokio::test]
async fn a_posted_body_arrives_with_its_headers_and_the_answer_comes_back() {
    let (address, mut hears) = server("HTTP/1.1 201 Created\r\nx-kind: test\r\ncontent-length: 2\r\n\r\n{}").await;
    let outbound = Outbound::trusting(RootCertStore::empty());
    let signature = sign(&secret("s"), 1, b"[1]");
    for _ in 0..2 {
        let headers = [(SIGNATURE, signature.clone())];
        let reply = outbound.post_json(&url(format!("http://{address}/hook?key=1")), "[1]", &headers, PLENTY).await.expect("an answer");
        assert_eq!(
            (reply.status, &reply.headers["x-kind"], &reply.body[..]),
            (StatusCode::CREATED, &HeaderValue::from_static("test"), &b"{}"[..])
        );
        let heard = hears.recv().await.expect("a request");
        assert!(heard.starts_with("POST /hook?key=1 HTTP/1.1\r\n") && heard.ends_with("\r\n\r\n[1]"), "{heard}");
        assert!(heard.contains("content-type: application/json\r\n") && heard.contains("x-uringcast-signature: t=1,v1="), "{heard}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let (address, mut hears) = server("HTTP/1.1 307 Temporary Redirect\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n").await;
    let reply = Outbound::new().get(&url(format!("http://{address}/")), &[], PLENTY).await.expect("an answer");
    assert_eq!(reply.status, StatusCode::TEMPORARY_REDIRECT);
    assert!(hears.recv().await.expect("one request").starts_with("GET / "));
    assert!(hears.try_recv().is_err(), "and no other");
}

#[tokio::test]
async fn answers_beyond_the_bound_or_broken_off_are_none() {
    let long: &str = "HTTP/1.1 200 OK\r\ncontent-length: 65\r\n\r\n12345678901234567890123456789012345678901234567890123456789012345";
    for (answer, fault) in [
        (long, "the answer is larger than 64 bytes"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n12345678901234567890123456789012345678901234567890123456789012345",
            "the answer is larger than 64 bytes",
        ),
        ("", "the answer broke off or is not HTTP"),
        ("SSH-2.0-OpenSSH\r\n", "the answer broke off or is not HTTP"),
    ] {
        let (address, _hears) = server(answer).await;
        let said = Outbound::new().get(&url(format!("http://{address}/")), &[], PLENTY).await.expect_err("no answer").to_string();
        assert_eq!(said, fault, "{answer}");
    }
}

#[tokio::test]
async fn silence_ends_with_the_time_and_nobody_there_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = url(format!("http://{}/", listener.local_addr().expect("bound")));
    let bounds = Bounds { time: Duration::from_millis(50), answer_bytes: 64 };
    let outbound = Outbound::new();
    assert!(matches!(outbound.post_json(&silent, "{}", &[], bounds).await, Err(OutboundFault::Timeout)));
    drop(listener);
    let fault = outbound.get(&silent, &[], PLENTY).await.expect_err("nobody listens");
    assert!(matches!(fault, OutboundFault::Connect(_)) && fault.to_string().contains("refused"), "{fault}");
}

async fn tls_server() -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).expect("ours");
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("ours");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![certificate], key))
        .expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(answer_all(stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue", mpsc::unbounded_channel().0));
            }
        }
    });
    address
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_roots_know_and_with_nobody_else() {
    let address = tls_server().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).expect("ours")).expect("a certificate");
    let outbound = Outbound::trusting(roots);
    let by_name = url(format!("https://localhost:{}/", address.port()));
    let reply = outbound.post_json(&by_name, "{}", &[], PLENTY).await.expect("an answer");
    assert_eq!(&reply.body[..], b"true");
    let reply = outbound.get(&url(format!("https://{address}/")), &[], PLENTY).await.expect("an answer");
    assert_eq!(&reply.body[..], b"true");

    let fault = Outbound::trusting(RootCertStore::empty()).get(&by_name, &[], PLENTY).await.expect_err("not trusted");
    assert!(matches!(fault, OutboundFault::Tls(_)) && fault.to_string().contains("UnknownIssuer"), "{fault}");
    let (plain, _hears) = server("HTTP/1.1 200 OK\r\n\r\n").await;
    let fault = outbound.get(&url(format!("https://{plain}/")), &[], Bounds { time: Duration::from_millis(200), ..PLENTY }).await;
    assert!(fault.is_err(), "no TLS there");
}

#[test]
fn urls_are_what_can_be_called_and_hide_their_query() {
    let shown = url("https://example.org:8443/hooks/join?key=secret");
    assert_eq!(
        (shown.to_string(), format!("{shown:?}")),
        ("https://example.org:8443/hooks/join".into(), "\"https://example.org:8443/hooks/join\"".into())
    );
    for (text, fault) in [
        ("", UrlFault::Malformed),
        ("/path", UrlFault::Scheme),
        ("example.org", UrlFault::Scheme),
        ("ftp://example.org/", UrlFault::Scheme),
        ("http://", UrlFault::Malformed),
        ("http:///path", UrlFault::Malformed),
        ("http://a b/", UrlFault::Malformed),
        ("http://user:pass@example.org/", UrlFault::Credentials),
    ] {
        assert_eq!(text.parse::<Url>(), Err(fault), "{text}");
    }
}

#[test]
fn a_signature_is_what_others_compute() {
    // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
    let value = sign(&secret("key"), 1_700_000_000, br#"{"a":1}"#);
    assert_eq!(value, "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03");
}
