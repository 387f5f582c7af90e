"""A key and a certificate for it, made by openssl."""

import shutil
import subprocess

import pytest

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="makes keys and certificates")


def make_tls_files(folder, *pass_phrase):
    key, certificate = folder / "key.pem", folder / "cert.pem"
    make = "openssl req -x509 -newkey rsa:2048 -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1".split()
    make += ["-keyout", key, "-out", certificate, *(pass_phrase or ["-nodes"])]
    subprocess.run(make, check=True, capture_output=True)
    return key, certificate
