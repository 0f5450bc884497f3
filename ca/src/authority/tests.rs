use super::*;
use proptest::prelude::*;

/// RFC 7541 appendix B for the characters of a socket's path.
fn huffman(text: &str) -> Vec<u8> {
    let code = |c: char| match c {
        '0'..='2' => (5, c as u32 - '0' as u32),
        ' ' => (6, 0x14),
        '%' => (6, 0x15),
        '/' => (6, 0x18),
        '-' => (6, 0x16),
        '.' => (6, 0x17),
        '_' => (6, 0x22),
        'F' => (7, 0x61),
        'a' => (5, 0x03),
        'c' => (5, 0x04),
        'd' => (6, 0x24),
        'k' => (7, 0x75),
        'm' => (6, 0x29),
        'n' => (6, 0x2a),
        'o' => (5, 0x07),
        'r' => (6, 0x2c),
        's' => (5, 0x08),
        'u' => (6, 0x2d),
        'v' => (7, 0x77),
        'w' => (7, 0x78),
        '\u{7f}' => (28, 0xffffffc),
        other => panic!("no code for {other:?}"),
    };
    let mut bits: Vec<bool> = Vec::new();
    for c in text.chars() {
        let (length, code): (u32, u32) = code(c);
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push(true); // padding is the beginning of EOS, all ones
    }
    bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | u8::from(*bit))).collect()
}

const PATH: &str = "%2Fvar%2Frun%2Fswarmd.sock";
const MENDED: &str = "-2Fvar-2Frun-2Fswarmd.sock";

/// The header block of a unary gRPC call as Go writes it; `:authority` as given.
fn block(authority: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x87]; // :method POST, :scheme https
    block.extend_from_slice(&[0x44, 5]); // :path, literal with indexing
    block.extend_from_slice(b"/%2Fx");
    block.push(0x41); // :authority, literal with indexing
    block.extend_from_slice(authority);
    block.push(0x5f); // content-type
    block.push(16);
    block.extend_from_slice(b"application/grpc");
    block.extend_from_slice(&[0x40, 2]); // te: trailers, both literal
    block.extend_from_slice(b"te");
    block.push(8);
    block.extend_from_slice(b"trailers");
    block
}

fn plain(text: &str) -> Vec<u8> {
    [&[text.len() as u8][..], text.as_bytes()].concat()
}

fn coded(text: &str) -> Vec<u8> {
    let content = huffman(text);
    [&[0x80 | content.len() as u8][..], &content].concat()
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), [0, 0, 0, 4, 0, 0, 0, 0, 0].to_vec()].concat()
}

fn filtered(input: &[u8], piece: usize) -> Vec<u8> {
    let (mut filter, mut out) = (AuthorityFilter::new(), Vec::new());
    for piece in input.chunks(piece) {
        filter.feed(piece, &mut out);
    }
    filter.finish(&mut out);
    out
}

#[test]
fn the_codes_are_those_of_the_rfc() {
    // RFC 7541 C.4.1
    let expected = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    // only to know that CODES is right: walk over it and count 15 characters
    let (mut code, mut length, mut first, mut characters) = (0u32, 0usize, 0u32, 0);
    for bit in 0..expected.len() * 8 {
        code = code << 1 | (expected[bit / 8] >> (7 - bit % 8) & 1) as u32;
        first = (first + CODES[length]) << 1;
        length += 1;
        if code.wrapping_sub(first) < CODES[length] {
            characters += 1;
            (code, length, first) = (0, 0, 0);
        }
    }
    assert_eq!(characters, "www.example.com".len());
    assert_eq!(CODES.iter().sum::<u32>(), 257, "256 octets and EOS");
}

#[test]
fn what_an_authority_must_not_have_becomes_dashes_and_nothing_else_changes() {
    let (raw, raw_mended) = ("/var/run/swarmd sock", "-var-run-swarmd-sock");
    for (given, expected) in
        [(plain(PATH), plain(MENDED)), (coded(PATH), coded(MENDED)), (plain(raw), plain(raw_mended)), (coded(raw), coded(raw_mended))]
    {
        let call = |authority| [preface(), frame(HEADERS, END_HEADERS, &block(authority)), frame(0, 1, b"%2F")].concat();
        for piece in [1, 7, 4096] {
            assert_eq!(filtered(&call(&given), piece), call(&expected));
        }
    }
    let far = format!("{}%2F", '\u{7f}'); // a long code before it
    let mut text = huffman(&far);
    mend_huffman(&mut text);
    assert_eq!(text, huffman(&far.replace('%', "-")));
}

#[test]
fn padding_and_priority_are_stepped_over() {
    let payload = |authority: &[u8]| [&[3, 0, 0, 0, 0, 16][..], &block(authority), b"%%%"].concat();
    let call = |authority: &[u8]| [preface(), frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &payload(authority))].concat();
    assert_eq!(filtered(&call(&coded(PATH)), 11), call(&coded(MENDED)));
}

#[test]
fn an_authority_in_order_is_left_alone() {
    for authority in ["swarmd.sock", "-2F.", ""] {
        let call = [preface(), frame(HEADERS, END_HEADERS, &block(&coded(authority)))].concat();
        assert_eq!(filtered(&call, 5), call);
    }
}

proptest! {
    #[test]
    fn every_path_is_mended(text in "[0-2 %/._Fackdmnorsuvw\u{7f}-]{0,40}") {
        let mut given = huffman(&text);
        mend_huffman(&mut given);
        prop_assert_eq!(given, huffman(&text.replace([' ', '%', '/'], "-")));
    }

    #[test]
    fn no_byte_is_lost_or_added(input: Vec<u8>, piece in 1usize..64, flags: u8) {
        prop_assert_eq!(filtered(&input, piece).len(), input.len());
        let framed = [preface(), frame(HEADERS, flags | END_HEADERS, &input), input.clone()].concat();
        prop_assert_eq!(filtered(&framed, piece).len(), framed.len());
    }
}
