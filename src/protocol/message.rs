//! Calls and replies.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::interface::{CONTROL, SERVICE};
use crate::model::FilePath;

/// A method call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Interface and method: `io.opm.Control.List`.
    pub method: String,
    /// Its parameters.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Whether several replies are welcome.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
    /// Whether none is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
}

impl Call {
    /// Reads a call from a message's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// A call of opm's own interface.
    pub fn control(method: &str, parameters: Value) -> Self {
        let parameters = if let Value::Object(map) = parameters { map } else { Map::new() };
        Self { method: format!("{CONTROL}.{method}"), parameters, more: false, oneway: false }
    }

    /// The bytes of a call of opm's own interface, NUL included, without a copy of its parameters.
    pub fn encode_control(method: &str, parameters: &impl Serialize) -> Vec<u8> {
        #[derive(Serialize)]
        struct Outgoing<'a, T> {
            method: String,
            parameters: &'a T,
        }
        let method = format!("{CONTROL}.{method}");
        let mut bytes = serde_json::to_vec(&Outgoing { method, parameters }).unwrap_or_default();
        bytes.push(0);
        bytes
    }

    /// The same call, asking for several replies.
    #[must_use]
    pub fn with_more(mut self) -> Self {
        self.more = true;
        self
    }

    /// The message's bytes, NUL included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(0);
        bytes
    }
}

/// An answer to a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Reply {
    /// The result, or what an error is about.
    #[serde(default)]
    pub parameters: Value,
    /// Whether more replies follow.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The name of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    /// The last reply to a call.
    pub fn last(parameters: Value) -> Self {
        Self { parameters, ..Self::default() }
    }

    /// A reply after which more follow.
    pub fn one_of_more(parameters: Value) -> Self {
        Self { parameters, continues: true, error: None }
    }

    /// Reads a reply from a message's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// The message's bytes, NUL included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(0);
        bytes
    }
}

/// Why a call cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// No such interface.
    InterfaceNotFound(String),
    /// No such method.
    MethodNotFound(String),
    /// A parameter is missing or of the wrong type.
    InvalidParameter(String),
    /// Replies follow one another, and the caller did not ask for `more`.
    ExpectedMore,
    /// The caller may not.
    PermissionDenied,
    /// No such unit.
    NoSuchUnit(String),
    /// It cannot be done.
    Refused(String),
    /// The units have mistakes; each as a JSON object, and all of them drawn.
    BadUnits(Value, String),
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        let (interface, name, parameters) = match failure {
            Failure::InterfaceNotFound(name) => {
                (SERVICE, "InterfaceNotFound", json!({ "interface": name }))
            }
            Failure::MethodNotFound(name) => (SERVICE, "MethodNotFound", json!({ "method": name })),
            Failure::InvalidParameter(name) => {
                (SERVICE, "InvalidParameter", json!({ "parameter": name }))
            }
            Failure::ExpectedMore => (SERVICE, "ExpectedMore", json!({})),
            Failure::PermissionDenied => (CONTROL, "PermissionDenied", json!({})),
            Failure::NoSuchUnit(reason) => (CONTROL, "NoSuchUnit", json!({ "reason": reason })),
            Failure::Refused(reason) => (CONTROL, "Refused", json!({ "reason": reason })),
            Failure::BadUnits(diagnostics, text) => {
                (CONTROL, "BadUnits", json!({ "diagnostics": diagnostics, "text": text }))
            }
        };
        Self { parameters, continues: false, error: Some(format!("{interface}.{name}")) }
    }
}

/// A file of a call, as it is sent.
#[derive(Debug, Serialize)]
pub struct FileToSend<'a> {
    path: &'a FilePath,
    text: TextToSend<'a>,
}

/// A [`FileText`] that is somebody else's.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum TextToSend<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> FileToSend<'a> {
    /// A file by its path and its bytes.
    pub fn new(path: &'a FilePath, bytes: &'a [u8]) -> Self {
        let text = std::str::from_utf8(bytes).map_or(TextToSend::Bytes(bytes), TextToSend::Text);
        Self { path, text }
    }
}

/// A file's content in JSON: a string where it is text, else its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileText {
    /// Text.
    Text(String),
    /// Bytes that are no text.
    Bytes(Vec<u8>),
}

impl From<Vec<u8>> for FileText {
    fn from(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes).map_or_else(|error| Self::Bytes(error.into_bytes()), Self::Text)
    }
}

impl From<FileText> for Vec<u8> {
    fn from(text: FileText) -> Self {
        match text {
            FileText::Text(text) => text.into_bytes(),
            FileText::Bytes(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_replies_survive_the_wire() {
        let call = Call::control("List", json!({ "units": ["web"] })).with_more();
        let bytes = call.encode();
        assert_eq!(bytes.last(), Some(&0));
        assert_eq!(Call::parse(&bytes[..bytes.len() - 1]), Ok(call));
        let reply = Reply::one_of_more(json!({ "x": 1 }));
        let bytes = reply.encode();
        assert_eq!(Reply::parse(&bytes[..bytes.len() - 1]), Ok(reply));
    }

    #[test]
    fn a_call_is_the_same_bytes_with_and_without_a_copy() {
        let parameters = json!({ "a": [1, "x"], "units": ["web"] });
        let copied = Call::control("List", parameters.clone()).encode();
        assert_eq!(Call::encode_control("List", &parameters), copied);
        for bytes in [&b"text"[..], b"\xff"] {
            let path = FilePath::from("/u/a.yaml");
            let sent = serde_json::to_value(FileToSend::new(&path, bytes)).unwrap();
            assert_eq!(sent["text"], serde_json::to_value(FileText::from(bytes.to_vec())).unwrap());
        }
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for bytes in [&b""[..], b"{}", b"[]", b"{\"method\":1}", b"{\"method\":\"a\",\"more\":3}"] {
            assert!(Call::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
