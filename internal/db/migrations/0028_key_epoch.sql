-- A write that rests on a signing key looks whether it was revoked, as a write
-- that rests on a grant or a session does.
alter table signing_key rename column revoked_at to ended_at;
alter table signing_key add column epoch bigint not null default 1;
