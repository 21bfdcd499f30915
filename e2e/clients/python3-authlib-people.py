"""An agent that people let act for them, with Authlib, as Debian 12 has it.
What they are asked to open or to type goes to standard output."""
import http.server
import os
import sys
import time
from urllib.parse import parse_qs, urlparse

from authlib.common.security import generate_token
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.jose import JsonWebToken
from authlib.oidc.core import CodeIDToken

ISSUER, CLIENT_ID, CLIENT_SECRET = os.environ["ISSUER"], os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"]
RESOURCE, API, PERSON = os.environ["RESOURCE"], os.environ["API"], os.environ["PERSON"]
TOKEN_ENDPOINT = ISSUER + "/oauth/token"


class Callback(http.server.BaseHTTPRequestHandler):
    """Where the browser comes back."""

    def do_GET(self):
        self.server.came = self.path
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"You may close this window.")

    def log_message(self, *_):
        pass


# The agent listens on a port of its own for the browser that comes back.
server = http.server.HTTPServer(("127.0.0.1", 0), Callback)
REDIRECT = f"http://127.0.0.1:{server.server_port}/callback"


# A person is asked.
def code(scope, **parameters):
    session = OAuth2Session(CLIENT_ID, CLIENT_SECRET, scope=scope, redirect_uri=REDIRECT, code_challenge_method="S256")
    verifier = generate_token(48)
    url, state = session.create_authorization_url(ISSUER + "/oauth/authorize", code_verifier=verifier, **parameters)
    print("Open", url, flush=True)
    server.handle_request()
    assert parse_qs(urlparse(server.came).query)["iss"] == [ISSUER], server.came
    session.fetch_token(TOKEN_ENDPOINT, authorization_response=REDIRECT.replace("/callback", server.came), state=state, code_verifier=verifier)
    return session


session = code("customer.read", resource=RESOURCE)
assert session.get(API).status_code == 200

# A refresh token is good once.
first = session.token
second = session.refresh_token(TOKEN_ENDPOINT)
assert second["refresh_token"] != first["refresh_token"], second
assert session.get(API).status_code == 200
assert session.revoke_token(ISSUER + "/oauth/revoke", second["refresh_token"]).status_code == 200
assert session.get(API).status_code == 401

# A person signs in.
nonce = generate_token(20)
session = code("openid email", nonce=nonce)
keys = session.get(ISSUER + "/oauth/jwks", withhold_token=True).json()
claims = JsonWebToken(["RS256"]).decode(
    session.token["id_token"], keys, claims_cls=CodeIDToken,
    claims_options={"iss": {"value": ISSUER}, "aud": {"value": CLIENT_ID}},
    claims_params={"nonce": nonce, "client_id": CLIENT_ID, "access_token": session.token["access_token"]},
)
claims.validate()
info = session.get(ISSUER + "/oauth/userinfo").json()
assert info["sub"] == claims["sub"] and info["email"] == PERSON + "@example.com", info


# A person types a code. The library has the grant type and no loop around it.
def typed(session):
    device = session.post(ISSUER + "/oauth/device", data={"resource": RESOURCE, "scope": "customer.read"}, withhold_token=True,
                          auth=(CLIENT_ID, CLIENT_SECRET)).json()
    print("Type", device["user_code"], flush=True)
    while True:
        try:
            return session.fetch_token(
                TOKEN_ENDPOINT, grant_type="urn:ietf:params:oauth:grant-type:device_code", device_code=device["device_code"])
        except OAuthError as error:
            if error.error not in ("authorization_pending", "slow_down"):
                raise
        time.sleep(device["interval"])


session = OAuth2Session(CLIENT_ID, CLIENT_SECRET)
typed(session)
assert session.get(API).status_code == 200
sys.stdin.close()
