//! The control protocol: bytes to messages, and messages to calls and replies.

use opm::protocol::{Call, Decoder, Failure, FileText, Reply, TooLong};
use serde_json::{Value, json};

/// Most messages of a stream that are read as calls and replies.
const MESSAGES_MAX: usize = 16;

/// What comes out of a decoder, and why it ended.
type Messages = (Vec<Vec<u8>>, Option<TooLong>);

/// The first byte is the limit, the second says how the stream is cut; the rest is the stream.
/// Messages are the same however they come, and none is longer than the limit; what is read as a
/// call or a reply is written as the same one.
pub fn protocol(bytes: &[u8]) {
    let (limit, cut, stream) = match bytes {
        [limit, cut, stream @ ..] => (*limit, *cut, stream),
        [..] => return,
    };
    // Most streams are to get through.
    let limit = if limit < 0x40 { usize::from(limit) } else { 1024 * 1024 };
    let whole = decode(limit, std::iter::once(stream));
    assert_eq!(whole, model(limit, stream));
    let size = [1, 2, 3, 5, 8, 64, 1000][usize::from(cut) % 7];
    assert_eq!(decode(limit, stream.chunks(size)), whole, "in chunks of {size}");
    let (one, other) = stream.split_at(super::number_of(stream) % (stream.len() + 1));
    assert_eq!(decode(limit, [one, other].into_iter()), whole, "in two pieces");
    for message in whole.0.iter().take(MESSAGES_MAX) {
        check_message(message);
    }
    file_text(stream);
}

fn decode<'a>(limit: usize, chunks: impl Iterator<Item = &'a [u8]>) -> Messages {
    let mut decoder = Decoder::new(limit);
    let mut messages = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.take() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

/// What ends with a NUL is a message, up to the first piece that is too long.
fn model(limit: usize, stream: &[u8]) -> Messages {
    let pieces: Vec<&[u8]> = stream.split(|byte| *byte == 0).collect();
    let long = pieces.iter().position(|piece| piece.len() > limit);
    let whole = pieces.iter().take(long.unwrap_or(pieces.len() - 1));
    (whole.map(|piece| piece.to_vec()).collect(), long.map(|_| TooLong(limit)))
}

fn check_message(message: &[u8]) {
    if let Ok(call) = Call::parse(message) {
        assert_eq!(Call::parse(body(&call.encode())).as_ref(), Ok(&call));
    }
    if let Ok(reply) = Reply::parse(message) {
        check_reply(&reply);
    }
    let text = String::from_utf8_lossy(message).into_owned();
    for failure in [
        Failure::InterfaceNotFound(text.clone()),
        Failure::MethodNotFound(text.clone()),
        Failure::InvalidParameter(text.clone()),
        Failure::NoSuchUnit(text.clone()),
        Failure::Refused(text.clone()),
        Failure::BadUnits(json!([{ "message": text.clone() }]), text),
    ] {
        check_reply(&Reply::from(failure));
    }
}

fn check_reply(reply: &Reply) {
    let bytes = reply.encode();
    assert!(serde_json::from_slice::<Value>(body(&bytes)).is_ok_and(|json| json.is_object()));
    assert_eq!(Reply::parse(body(&bytes)).as_ref(), Ok(reply));
}

/// A frame without its NUL, which is the only one.
fn body(frame: &[u8]) -> &[u8] {
    let (last, body) = frame.split_last().expect("a frame is not empty");
    assert!(*last == 0 && !body.contains(&0), "a frame ends at its NUL");
    body
}

/// The content of a unit file goes through JSON byte for byte.
fn file_text(bytes: &[u8]) {
    let sent = serde_json::to_vec(&FileText::from(bytes.to_vec())).unwrap();
    let came: FileText = serde_json::from_slice(&sent).unwrap();
    assert_eq!(Vec::from(came), bytes);
}
