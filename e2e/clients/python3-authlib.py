"""An agent by itself, with Authlib, as Debian 12 has it."""
import json
import os
import time

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import AssertionSession, OAuth2Session
from authlib.jose import JsonWebKey
from authlib.oauth2.rfc7523 import PrivateKeyJWT

ISSUER, CLIENT_ID, CLIENT_SECRET = os.environ["ISSUER"], os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"]
RESOURCE, API = os.environ["RESOURCE"], os.environ["API"]
TOKEN_ENDPOINT = ISSUER + "/oauth/token"


# By its secret.
def by_secret(method):
    session = OAuth2Session(CLIENT_ID, CLIENT_SECRET, scope="customer.read", token_endpoint_auth_method=method)
    session.fetch_token(TOKEN_ENDPOINT, grant_type="client_credentials", resource=RESOURCE)
    return session.get(API), session.token


# By its key.
class Assertion(PrivateKeyJWT):
    """Assertions of a minute, instead of an hour, each with an id of its own."""

    def sign(self, auth, token_endpoint):
        self.claims = {"exp": int(time.time()) + 60}
        return super().sign(auth, token_endpoint)


with open(os.environ["CLIENT_KEY"], encoding="utf-8") as file:
    KEY = JsonWebKey.import_key(json.load(file))


def by_key(method):
    session = OAuth2Session(CLIENT_ID, KEY, scope="customer.read", token_endpoint_auth_method="private_key_jwt")
    session.register_client_auth_method(method)
    session.fetch_token(TOKEN_ENDPOINT, grant_type="client_credentials", resource=RESOURCE)
    return session.get(API), session.token


def good(result):
    answer, token = result
    assert answer.status_code == 200, answer.text
    assert token["token_type"] == "Bearer" and token["scope"] == "customer.read" and token["expires_in"] == 900, token


def refused(method, why):
    try:
        by_key(method)
    except OAuthError as error:
        assert error.error == "invalid_client" and why in error.description, error
    else:
        raise AssertionError("a token was issued, want invalid_client: " + why)


good(by_secret("client_secret_basic"))
good(by_secret("client_secret_post"))

# What this library calls the token endpoint is only the audience.
issuer = Assertion(ISSUER, alg="ES256")
good(by_key(issuer))
good(by_key(issuer))

endpoint = Assertion(TOKEN_ENDPOINT, alg="ES256")
if os.environ.get("LEGACY_ASSERTION_AUDIENCE"):
    good(by_key(endpoint))
else:
    refused(endpoint, "for another audience")
refused(PrivateKeyJWT(ISSUER, alg="ES256"), "lives longer")

# What becomes of a token.
session = OAuth2Session(CLIENT_ID, CLIENT_SECRET, scope="customer.read")
session.fetch_token(TOKEN_ENDPOINT, grant_type="client_credentials", resource=RESOURCE)
value = session.token["access_token"]
assert session.introspect_token(ISSUER + "/oauth/introspect", value).json()["active"] is True


# Another agent takes it up, for less.
def handed(value):
    session = OAuth2Session(os.environ["HELPER_ID"], os.environ["HELPER_SECRET"], scope="customer.read")
    return session.fetch_token(
        TOKEN_ENDPOINT, grant_type="urn:ietf:params:oauth:grant-type:token-exchange", resource=RESOURCE,
        subject_token=value, subject_token_type="urn:ietf:params:oauth:token-type:access_token",
    ), session


if "HELPER_ID" in os.environ:
    token, helper = handed(value)
    assert token["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token", token
    assert helper.get(API).status_code == 200
    told = helper.introspect_token(ISSUER + "/oauth/introspect", token["access_token"]).json()
    assert told["sub"] == "agent:" + CLIENT_ID and told["act"]["sub"] == "agent:" + os.environ["HELPER_ID"], told
assert session.revoke_token(ISSUER + "/oauth/revoke", value).status_code == 200
assert session.introspect_token(ISSUER + "/oauth/introspect", value).json() == {"active": False}
if "HELPER_ID" in os.environ:  # what ends the one ends the other
    assert helper.get(API).status_code == 401


# An agent that a trust knows by the tokens that its platform makes.
def recognised(key):
    session = AssertionSession(
        TOKEN_ENDPOINT, issuer="https://platform.example", subject="job-7", audience=ISSUER,
        key=key, header={"alg": "RS256", "kid": "platform"}, expires_at=int(time.time()) + 60, scope="customer.read",
    )
    return session.get(API), session.token


if "PLATFORM_KEY" in os.environ:
    with open(os.environ["PLATFORM_KEY"], encoding="utf-8") as file:
        good(recognised(file.read()))
