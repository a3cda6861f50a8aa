// SPDX-License-Identifier: GPL-2.0

//! Fields in byte arrays.
//!
//! Both macros list the fields of a C structure in order and without gaps. A list that does not
//! add up to the length of the array does not compile.

/// Binds each field of a byte array to a variable: `unpack!(raw => argsz: u32, iova: u64)`.
macro_rules! unpack {
    ($bytes:expr => ) => {
        let [] = $bytes;
    };
    ($bytes:expr => $name:ident: u32 $(, $($more:tt)*)?) => {
        let [a, b, c, d, rest @ ..] = $bytes;
        let $name = u32::from_ne_bytes([a, b, c, d]);
        unpack!(rest => $($($more)*)?);
    };
    ($bytes:expr => $name:ident: u64 $(, $($more:tt)*)?) => {
        let [a, b, c, d, e, f, g, h, rest @ ..] = $bytes;
        let $name = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        unpack!(rest => $($($more)*)?);
    };
}

/// Makes a byte array of fields: `pack!(argsz: u32, iova: u64)`.
macro_rules! pack {
    (@ [$($byte:ident)*]) => {
        [$($byte),*]
    };
    (@ [$($byte:ident)*] $value:ident: u16 $(, $($more:tt)*)?) => {{
        let [a, b] = u16::to_ne_bytes($value);
        pack!(@ [$($byte)* a b] $($($more)*)?)
    }};
    (@ [$($byte:ident)*] $value:ident: u32 $(, $($more:tt)*)?) => {{
        let [a, b, c, d] = u32::to_ne_bytes($value);
        pack!(@ [$($byte)* a b c d] $($($more)*)?)
    }};
    (@ [$($byte:ident)*] $value:ident: u64 $(, $($more:tt)*)?) => {{
        let [a, b, c, d, e, f, g, h] = u64::to_ne_bytes($value);
        pack!(@ [$($byte)* a b c d e f g h] $($($more)*)?)
    }};
    ($value:ident: $($fields:tt)*) => {
        pack!(@ [] $value: $($fields)*)
    };
}
