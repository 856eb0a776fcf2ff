use std::borrow::Cow;
pub enum Head<'b> {
    Incomplete,
    Complete { bytes: usize, request: Request<'b> },
    Bad { status: u16 },
}
pub fn parse(_buf: &[u8], _head_max: usize) -> Head<'_> {
    Head::Incomplete
}
pub struct Request<'b> {
    pub method: &'b str,
    pub target: &'b str,
    pub path: &'b str,
    pub query: &'b str,
}
impl<'b> Request<'b> {
    pub fn header(&self, _name: &str) -> Option<&'b str> {
        None
    }
    pub fn query_value(&self, _name: &str) -> Option<Cow<'b, str>> {
        None
    }
    pub fn cookie(&self, _name: &str) -> Option<&'b str> {
        None
    }
    pub fn bearer(&self) -> Option<&'b str> {
        None
    }
    pub fn wants_websocket(&self) -> bool {
        false
    }
    pub fn websocket_key(&self) -> Result<&'b str, u16> {
        Err(400)
    }
    pub fn first_protocol(&self) -> Option<&'b str> {
        None
    }
}
pub fn query_value<'b>(_query: &'b str, _name: &str) -> Option<Cow<'b, str>> {
    None
}
pub fn query_values(_query: &str, _name: &str) -> Vec<String> {
    vec![]
}
pub fn switching_protocols(_key: &str, _protocol: Option<&str>, _extra: &[(&str, &str)]) -> Vec<u8> {
    vec![]
}
pub fn response(_status: u16, _content_type: &str, _extra: &[(&str, &str)], _body: &str) -> Vec<u8> {
    vec![]
}
