pub enum WsFault {
    Protocol,
    Utf8,
    TooBig,
}
pub enum Message<'b> {
    Text(&'b str),
    Binary(&'b [u8]),
    Ping(&'b [u8]),
    Pong(&'b [u8]),
    Close { code: Option<u16>, reason: &'b str },
}
pub enum Step<'b> {
    Incomplete,
    Consumed { bytes: usize, message: Option<Message<'b>> },
}
#[derive(Default, Debug)]
pub struct Decoder {}
impl Decoder {
    pub fn next<'b>(&'b mut self, buf: &'b mut [u8], message_max: usize) -> Result<Step<'b>, WsFault> {
        let _ = (buf, message_max);
        Ok(Step::Incomplete)
    }
}
pub fn header(_opcode: u8, _payload_len: usize) -> ([u8; 10], usize) {
    ([0; 10], 0)
}
pub fn frame(_opcode: u8, _payload: &[u8]) -> Vec<u8> {
    vec![]
}
pub fn close_frame(_code: u16, _reason: &str) -> Vec<u8> {
    vec![]
}
pub fn empty_close_frame() -> Vec<u8> {
    vec![]
}
