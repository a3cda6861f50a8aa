// SPDX-License-Identifier: GPL-2.0

//! One system call with all it needs, made ready beforehand: between arming a fault and the call
//! nothing may be allocated, and no memory touched for the first time.

use std::any::Any;
use std::ffi::CStr;
use std::os::fd::{
    IntoRawFd,
    OwnedFd,
    RawFd, //
};

use harness::vfio::Command;
use libc::c_long;

/// A system call that can be made again and again.
pub(crate) struct Call {
    what: What,
    // What the kernel reads and writes; it stays where it is.
    arg: Box<dyn Any>,
}

enum What {
    /// With the address of `arg`.
    Ioctl(RawFd, libc::Ioctl),
    /// With a number.
    Number(RawFd, libc::Ioctl, usize),
    Open(&'static CStr, i32),
    /// Into `arg`, from the beginning.
    Read(RawFd),
    Close(Option<RawFd>),
    Fork,
    LoadModule(RawFd),
}

/// Room for what [`Call::read`] reads.
pub(crate) type Text = [u8; 8192];

impl Call {
    /// An ioctl that takes the address of `arg`.
    ///
    /// # Safety
    ///
    /// `fd` stays open. The ioctl takes a `T`, and whatever addresses `arg` has in it are good for
    /// as long as the call may be made.
    pub(crate) unsafe fn ioctl<T: 'static>(fd: RawFd, code: libc::Ioctl, arg: T) -> Self {
        Call {
            what: What::Ioctl(fd, code),
            arg: Box::new(arg),
        }
    }

    /// A VFIO ioctl that takes the address of `arg`.
    ///
    /// # Safety
    ///
    /// As for [`Call::ioctl`].
    pub(crate) unsafe fn vfio<T: 'static>(fd: RawFd, command: Command, arg: T) -> Self {
        // SAFETY: Same contract.
        unsafe { Call::ioctl(fd, command.code(), arg) }
    }

    /// A VFIO ioctl that takes a number, or nothing.
    pub(crate) fn number(fd: RawFd, command: Command, number: u32) -> Self {
        Call::plain(What::Number(fd, command.code(), number as usize))
    }

    /// Opens a file for reading and writing.
    pub(crate) fn open(path: &'static CStr) -> Self {
        Call::plain(What::Open(path, libc::O_RDWR))
    }

    /// Opens a file for reading.
    pub(crate) fn open_to_read(path: &'static CStr) -> Self {
        Call::plain(What::Open(path, libc::O_RDONLY))
    }

    /// Reads the beginning of a file.
    pub(crate) fn read(fd: RawFd) -> Self {
        let text: Text = [0; 8192];
        Call {
            what: What::Read(fd),
            arg: Box::new(text),
        }
    }

    /// Closes a descriptor, once.
    pub(crate) fn close(fd: OwnedFd) -> Self {
        Call::plain(What::Close(Some(fd.into_raw_fd())))
    }

    /// Makes a process that ends at once.
    pub(crate) fn fork() -> Self {
        Call::plain(What::Fork)
    }

    /// Loads a module.
    pub(crate) fn load_module(fd: RawFd) -> Self {
        Call::plain(What::LoadModule(fd))
    }

    fn plain(what: What) -> Self {
        Call {
            what,
            arg: Box::new(()),
        }
    }

    /// The argument, as the kernel left it.
    ///
    /// # Panics
    ///
    /// If it is not a `T`.
    pub(crate) fn arg<T: 'static>(&self) -> &T {
        self.arg.downcast_ref().expect("the type it was made with")
    }

    /// Makes the call, with nothing before and after it.
    pub(crate) fn issue(&mut self) -> c_long {
        let arg: *mut dyn Any = &raw mut *self.arg;
        let arg: *mut libc::c_void = arg.cast();
        match &mut self.what {
            // SAFETY: By the contract of `Call::ioctl`; the argument is ours and borrowed by
            // nobody.
            What::Ioctl(fd, code) => unsafe { libc::ioctl(*fd, *code, arg).into() },
            // SAFETY: The argument is a number.
            What::Number(fd, code, number) => unsafe { libc::ioctl(*fd, *code, *number).into() },
            // SAFETY: The path is a string that ends with a zero.
            What::Open(path, flags) => unsafe {
                libc::open(path.as_ptr(), *flags | libc::O_CLOEXEC).into()
            },
            // SAFETY: The argument is a `Text` of ours.
            What::Read(fd) => unsafe { libc::pread(*fd, arg, size_of::<Text>(), 0) as c_long },
            What::Close(fd) => match fd.take() {
                // SAFETY: It was an `OwnedFd`, and is closed only here.
                Some(fd) => unsafe { libc::close(fd).into() },
                None => 0,
            },
            // SAFETY: The child ends at once and touches nothing.
            What::Fork => match unsafe { libc::fork() } {
                // SAFETY: As above.
                0 => unsafe { libc::_exit(0) },
                pid => pid.into(),
            },
            // SAFETY: The parameters are an empty string.
            What::LoadModule(fd) => unsafe {
                libc::syscall(libc::SYS_finit_module, *fd, c"".as_ptr(), 0)
            },
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let What::Close(Some(fd)) = self.what {
            // SAFETY: It was an `OwnedFd` and has not been closed.
            unsafe { libc::close(fd) };
        }
    }
}
