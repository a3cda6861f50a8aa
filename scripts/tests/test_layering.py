# SPDX-License-Identifier: GPL-2.0
"""check-layering has to find each violation it is there for, and no more."""

import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "check-layering"

GOOD = {
    "rust/logic/space/src/lib.rs": """
        #![forbid(unsafe_code)]
        //! Not `unsafe`, and no "kernel::".
        use core::fmt;
        use other::Thing;
        mod part;
        use part::Part;
        #[cfg_attr(vrs_kunit, kernel::macros::kunit_tests(space))]
        mod tests {
            use super::*;
        }
        """,
    "rust/logic/space/src/part.rs": """
        pub struct Part;
        """,
    "rust/logic/other/src/lib.rs": """
        #![forbid(unsafe_code)]
        pub struct Thing;
        """,
    "rust/mm/lib.rs": """
        //! # Unsafe code
        //!
        //! Calls C.
        use kernel::bindings;
        struct Table {
            call: unsafe extern "C" fn(u32) -> i32,
        }
        // SAFETY: it holds no reference.
        unsafe impl Send for Table {}
        /// Frees it.
        ///
        /// # Safety
        ///
        /// Nobody may use it afterwards.
        #[inline]
        unsafe fn free(x: *mut u8) {
            // SAFETY: by the function's contract.
            unsafe { bindings::kfree(x) }
        }
        /// Can be pinned.
        ///
        /// # Safety
        ///
        /// It stays where it is.
        unsafe trait Pinned {
            /// Looks at it.
            ///
            /// # Safety
            ///
            /// It has to be there.
            unsafe fn look(x: *mut u8);
        }
        impl Pinned for Table {
            unsafe fn look(x: *mut u8) {
                // SAFETY: the caller may,
                // says the trait.
                let all =
                    unsafe { free(x) };
                /* unsafe { */
                let text = "unsafe {";
                let raw = r#"unsafe " {"#;
                let tick = '"';
            }
        }
        """,
    "vfio_type1_rs/main.rs": """
        #![forbid(unsafe_code)]
        use kernel::prelude::*;
        """,
}


def check(files):
    with tempfile.TemporaryDirectory() as tree:
        for name, text in files.items():
            path = Path(tree, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"))
        done = subprocess.run([sys.executable, SCRIPT, tree], capture_output=True, text=True)
    return done.returncode, done.stdout


class Layering(unittest.TestCase):
    def expect(self, file, old, new, *words):
        """Replacing ``old`` by ``new`` in a good tree is found, with its place."""
        files = dict(GOOD)
        self.assertIn(old, files[file])
        files[file] = files[file].replace(old, new, 1)
        status, said = check(files)
        self.assertEqual(status, 1, said)
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertRegex(said, rf"^{file}:\d+: ")
        for word in words:
            self.assertIn(word, said)

    def test_good_tree(self):
        self.assertEqual(check(GOOD), (0, "check-layering: 5 files keep to their layers\n"))

    def test_empty_tree(self):
        self.assertEqual(check({})[0], 1)

    def test_logic_must_forbid_unsafe(self):
        self.expect("rust/logic/other/src/lib.rs", "#![forbid(unsafe_code)]", "", "forbid")

    def test_forbid_in_a_comment_does_not_count(self):
        self.expect("vfio_type1_rs/main.rs", "#![forbid", "// #![forbid", "forbid")

    def test_logic_may_not_use_kernel(self):
        self.expect("rust/logic/space/src/lib.rs", "use core::fmt", "use kernel::fmt", "kernel")

    def test_logic_may_not_name_std_in_a_path(self):
        self.expect("rust/logic/space/src/part.rs", "pub struct Part;", "pub struct Part(std::string::String);", "std")

    def test_logic_may_not_use_other_crates(self):
        self.expect("rust/logic/space/src/lib.rs", "use core::fmt", "use serde::Serialize", "serde")

    def test_logic_may_not_be_unsafe(self):
        self.expect("rust/logic/space/src/part.rs", "pub struct", "unsafe impl Send for Part {}\npub struct", "unsafe")

    def test_module_may_not_use_bindings(self):
        self.expect("vfio_type1_rs/main.rs", "use kernel::prelude::*", "use kernel::bindings", "bindings")

    def test_module_may_not_be_unsafe(self):
        self.expect("vfio_type1_rs/main.rs", "use kernel::prelude::*;", "fn f() { unsafe { g() } }", "unsafe")

    def test_block_without_reason(self):
        self.expect("rust/mm/lib.rs", "// SAFETY: by the", "// By the", "block", "SAFETY")

    def test_reason_must_be_directly_above(self):
        self.expect("rust/mm/lib.rs", "// SAFETY: by the function's contract.\n",
                    "// SAFETY: by the function's contract.\n            let y = 1;\n", "block")

    def test_impl_without_reason(self):
        self.expect("rust/mm/lib.rs", "// SAFETY: it holds no reference.\n", "", "impl")

    def test_fn_without_contract(self):
        self.expect("rust/mm/lib.rs", "/// Frees it.\n        ///\n        /// # Safety", "/// Frees it.", "fn free")

    def test_trait_without_contract(self):
        self.expect("rust/mm/lib.rs", "/// Can be pinned.\n        ///\n        /// # Safety", "/// Can.", "trait Pinned")

    def test_crate_without_reason(self):
        self.expect("rust/mm/lib.rs", "//! # Unsafe code", "//! # Code", "# Unsafe code")


if __name__ == "__main__":
    unittest.main()
