"""The API's certificate: read from a mounted Secret, and read again when it is renewed there. Connections that are open
go on with the certificate they began with."""

import asyncio
import logging
import ssl
from pathlib import Path

logger = logging.getLogger("sluice.gateway")

CERTIFICATE, KEY = "tls.crt", "tls.key"
"""Names in a Secret of type kubernetes.io/tls."""
POLL_SECONDS = 2.0


class Certificate:
    """The server's side of TLS, from one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._seen: tuple[bytes, bytes] | None = None

    def load(self) -> bool:
        """Take what lies in the folder. Returns whether it is new.

        Raises OSError, or ValueError that names the file; what was in force stays so."""
        found = self._renewed()
        if found is not None:
            self._use(*found)
        return found is not None

    def _renewed(self) -> tuple[Path, Path, tuple[bytes, bytes]] | None:
        """The pair that lies in the folder, tried out; None if it is the one in force."""
        # The kubelet swaps a link to renew both files at once: followed first, they are of one kind.
        place = (self.folder / CERTIFICATE).resolve().parent
        certificate, key = place / CERTIFICATE, place / KEY
        content = certificate.read_bytes(), key.read_bytes()
        if content == self._seen:
            return None
        # A trial first: a context that has taken half of a wrong pair would serve nobody.
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
        return certificate, key, content

    def _use(self, certificate: Path, key: Path, content: tuple[bytes, bytes]) -> None:
        """Put the pair in force. Not in a thread: a connection that came in between its two halves would fail."""
        self._load(self.context, certificate, key)
        self._seen = content

    def _load(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            what = f"{self.folder / CERTIFICATE} and {KEY}"
            why = error.reason or str(error)
            raise ValueError(f"{what} are no certificate with its private key in PEM: {why}") from None

    async def watch(self) -> None:
        """Look for a renewed certificate, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                found = await asyncio.to_thread(self._renewed)
                if found is not None:
                    self._use(*found)
                    logger.info("the certificate in %s was renewed", self.folder)
                told = ""
            except (OSError, ValueError) as error:
                if str(error) != told:
                    logger.error("%s; the certificate in force stays", error)
                told = str(error)


def _no_password() -> bytes:
    raise ValueError(f"{KEY} is encrypted; a Secret is to hold it plain")
