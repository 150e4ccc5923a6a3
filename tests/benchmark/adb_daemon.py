"""The device's side of adb, for the real adb program to talk to: shells that run commands for real, and files.

It listens on loopback only. `/data/local/tmp` and `/sdcard` are folders below `root`; `root/bin` comes first on the
path of its shells. What can go wrong with a phone is switched on by the attributes of :class:`AdbDaemon`.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import struct
import threading
from pathlib import Path

VERSION, MOST_PAYLOAD = 0x01000001, 1 << 18
STDOUT, STDERR, EXIT = 1, 2, 3
MAPPED = ("/data/local/tmp", "/sdcard")


@dataclasses.dataclass
class Stream:
    """One service that the other side opened."""

    local: int
    remote: int
    received: asyncio.Queue[bytes | None] = dataclasses.field(default_factory=asyncio.Queue)
    acknowledged: asyncio.Queue[bool] = dataclasses.field(default_factory=asyncio.Queue)
    closed: bool = False


class Connection:
    """One adb server's connection: messages in, messages out."""

    def __init__(self, daemon: "AdbDaemon", reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.daemon, self.reader, self.writer = daemon, reader, writer
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def send(self, command: bytes, first: int, second: int, payload: bytes = b"") -> None:
        number = struct.unpack("<I", command)[0]
        checksum = sum(payload) & 0xFFFFFFFF
        self.writer.write(struct.pack("<6I", number, first, second, len(payload), checksum, number ^ 0xFFFFFFFF))
        self.writer.write(payload)

    async def serve(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await self.reader.readexactly(24)
                _, first, second, length, _, _ = struct.unpack("<6I", header)
                self.handle(header[:4], first, second, await self.reader.readexactly(length))
                await self.writer.drain()
        for stream in self.streams.values():
            stream.received.put_nowait(None)
            stream.acknowledged.put_nowait(False)
        self.writer.close()

    def handle(self, command: bytes, first: int, second: int, payload: bytes) -> None:
        if self.daemon.mute:
            return
        if command in (b"CNXN", b"AUTH") and not self.daemon.authorized:
            if not (command == b"AUTH" and first == 3):  # a public key, which nobody confirms on the screen
                self.send(b"AUTH", 1, 0, os.urandom(20))
        elif command == b"CNXN":
            features = "features=shell_v2" if self.daemon.shell_v2 else ""
            banner = f"device::ro.product.name=test;ro.product.model=Test_Phone;ro.product.device=test;{features}"
            self.send(b"CNXN", VERSION, MOST_PAYLOAD, banner.encode())
        elif command == b"OPEN":
            stream = Stream(len(self.streams) + 1, first)
            self.streams[stream.local] = stream
            task = asyncio.get_running_loop().create_task(self.open(stream, payload.rstrip(b"\0").decode()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif second in self.streams and command == b"WRTE":
            self.streams[second].received.put_nowait(payload)
        elif second in self.streams and command == b"OKAY":
            self.streams[second].acknowledged.put_nowait(True)
        elif second in self.streams and command == b"CLSE":
            self.streams[second].closed = True
            self.streams[second].received.put_nowait(None)
            self.streams[second].acknowledged.put_nowait(False)

    async def open(self, stream: Stream, service: str) -> None:
        name, _, argument = service.partition(":")
        kind, *words = name.split(",")
        if kind == "shell":
            self.send(b"OKAY", stream.local, stream.remote)
            await self.shell(stream, argument, "v2" in words)
        elif kind == "sync":
            self.send(b"OKAY", stream.local, stream.remote)
            await Sync(self, stream).serve()
        self.send(b"CLSE", stream.local, stream.remote)

    async def write(self, stream: Stream, content: bytes) -> bool:
        """Sends it piece by piece, each after the one before was acknowledged; False when the other side is gone."""
        for start in range(0, len(content), MOST_PAYLOAD):
            if self.writer.is_closing():
                return False
            self.send(b"WRTE", stream.local, stream.remote, content[start : start + MOST_PAYLOAD])
            if not await stream.acknowledged.get():
                stream.acknowledged.put_nowait(False)
                return False
        return True

    async def shell(self, stream: Stream, command: str, packets: bool) -> None:
        """Runs a command for real. Older devices have neither separate streams nor exit codes, and a terminal's CRs."""
        daemon = self.daemon
        process = await daemon.start(command)
        if daemon.breaks(command):
            daemon.unplug()
        cut = daemon.cut is not None and daemon.cut in command
        begun = asyncio.Event()

        async def forward(source: asyncio.StreamReader, kind: int) -> None:
            heard = True  # a command does not notice when the cable is pulled; it runs to its end
            while piece := await source.read(MOST_PAYLOAD - 5):
                piece = piece.replace(str(daemon.root).encode(), b"")
                if cut:  # a busy machine may hand over all that the command says at once
                    piece = piece[: len(piece) // 2]
                said = struct.pack("<BI", kind, len(piece)) + piece if packets else piece.replace(b"\n", b"\r\n")
                heard = heard and await self.write(stream, said) and not cut
                begun.set()
                if stream.closed:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGPIPE)

        streams = asyncio.gather(forward(process.stdout, STDOUT), forward(process.stderr, STDERR))
        if cut:
            await begun.wait()
            return
        await streams
        code = await process.wait()
        daemon.forget(process.pid)
        if packets:
            await self.write(stream, struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))


class Sync:
    """File transfer on one stream."""

    def __init__(self, connection: Connection, stream: Stream):
        self.connection, self.stream, self.daemon = connection, stream, connection.daemon
        self.buffer = b""

    async def read(self, count: int) -> bytes:
        while len(self.buffer) < count:
            piece = await self.stream.received.get()
            if piece is None:
                raise EOFError
            self.buffer += piece
            self.connection.send(b"OKAY", self.stream.local, self.stream.remote)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    async def serve(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                request, length = struct.unpack("<4sI", await self.read(8))
                if request == b"QUIT":
                    return
                path = (await self.read(length)).decode()
                await {b"STAT": self.stat, b"SEND": self.take, b"RECV": self.give}[request](path)

    async def reply(self, *parts: bytes) -> None:
        await self.connection.write(self.stream, b"".join(parts))

    async def fail(self, reason: str) -> None:
        await self.reply(struct.pack("<4sI", b"FAIL", len(reason)), reason.encode())

    async def stat(self, path: str) -> None:
        try:
            found = os.stat(self.daemon.mapped(path))
            facts = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            facts = (0, 0, 0)
        await self.reply(struct.pack("<4s3I", b"STAT", *facts))

    async def take(self, target: str) -> None:
        path, _, mode = target.rpartition(",")
        self.daemon.pushed.append(path)
        content = b""
        while True:
            request, length = struct.unpack("<4sI", await self.read(8))
            if request == b"DONE":
                break
            content += await self.read(length)
        if self.daemon.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.daemon.push_failure is not None:
            await self.fail(self.daemon.push_failure)
            return
        if self.daemon.space is not None and len(content) > self.daemon.space:
            await self.fail("No space left on device")
            return
        place = Path(self.daemon.mapped(path))
        try:
            place.write_bytes(content)
            place.chmod(int(mode) & 0o777)
        except OSError as error:
            await self.fail(f"couldn't create file: {error.strerror}")
            return
        await self.reply(struct.pack("<4sI", b"OKAY", 0))

    async def give(self, path: str) -> None:
        try:
            content = Path(self.daemon.mapped(path)).read_bytes()
        except OSError as error:
            await self.fail(f"open failed: {error.strerror}")
            return
        for start in range(0, len(content), 1 << 16):
            piece = content[start : start + (1 << 16)]
            await self.reply(struct.pack("<4sI", b"DATA", len(piece)), piece)
        await self.reply(struct.pack("<4sI", b"DONE", 0))


class AdbDaemon:
    """A device on a port of loopback, from `with` to its end.

    Attributes:
        root: what its folders are below.
        port: where it listens; its serial is `127.0.0.1:port`.
        commands: the shell commands so far.
        pushed: the paths of files that it was sent.
        authorized: False: the user has not yet allowed this computer.
        mute: True: it takes connections and never answers.
        shell_v2: False: as before Android 7, no exit codes.
        cut: commands with this text in them lose their stream in the middle of the first output, without an exit code.
        space: files of more bytes do not fit.
        push_failure: what files are refused with.
        damage: True: files arrive with a wrong last byte.
        unplug_at: the connection breaks when commands with this text start, at these counts, the first being 1.
        replug_s: seconds until it can be reached again; None for never.
    """

    def __init__(self, root: Path):
        self.root = root
        for folder in (*MAPPED, "/bin"):
            (root / folder[1:]).mkdir(parents=True, exist_ok=True)
        self.port = 0
        self.commands: list[str] = []
        self.pushed: list[str] = []
        self.authorized, self.mute, self.shell_v2, self.damage = True, False, True, False
        self.cut: str | None = None
        self.space: int | None = None
        self.push_failure: str | None = None
        self.unplug_at: tuple[str, frozenset[int]] = ("", frozenset())
        self.replug_s: float | None = 0.2
        self._connections: list[Connection] = []
        self._groups: set[int] = set()
        self._processes: list[asyncio.subprocess.Process] = []
        self._matches = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def mapped(self, text: str) -> str:
        """Paths of the device, in the folders that stand for them."""
        return re.sub("|".join(MAPPED), lambda found: str(self.root) + found[0], text)

    def breaks(self, command: str) -> bool:
        text, counts = self.unplug_at
        if not text or text not in command:
            return False
        self._matches += 1
        return self._matches in counts

    async def start(self, command: str) -> asyncio.subprocess.Process:
        self.commands.append(command)
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", self.mapped(command)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            cwd=self.root,
            env={**os.environ, "PATH": f"{self.root}/bin:/usr/bin:/bin", "PHONE": str(self.root)},
        )
        self._groups.add(process.pid)
        self._processes.append(process)
        return process

    def forget(self, group: int) -> None:
        """Its shell has ended; what that left in the background is still to be ended with the daemon."""
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            self._groups.discard(group)

    def unplug(self) -> None:
        """Breaks the connection at once; called in the daemon's own thread."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.writer.transport.abort()
        self._connections.clear()
        if self.replug_s is not None:
            self._loop.call_later(self.replug_s, lambda: self._loop.create_task(self._listen()))

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.append(connection)
        with contextlib.suppress(asyncio.CancelledError):  # at the daemon's end
            await connection.serve()

    def __enter__(self) -> "AdbDaemon":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.replug_s = None
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self.unplug()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        waiting |= {asyncio.ensure_future(process.wait()) for process in self._processes}
        _, pending = await asyncio.wait(waiting, timeout=5) if waiting else (set(), set())
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
