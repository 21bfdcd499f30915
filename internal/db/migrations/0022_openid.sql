-- What a client learns of the person who lets it act: the scopes of OpenID
-- Connect, as a list; null where it learns nothing.
alter table oauth_grant add column person_scopes text;

-- What the client wants to read in the ID token that the code buys; '' for
-- nothing.
alter table oauth_code add column nonce text not null default '';
