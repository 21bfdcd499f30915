-- A family of refresh tokens is a row that is written in place, and not a row for each of
-- them. One that was made before has a family to itself, which is found as it was; if it
-- was spent, no value is good there any more.
create table refresh_family (
	tenant_id text not null,
	id bytes not null, -- of a hash of what all its tokens begin with
	grant_id text not null,
	generation bigint not null,
	jkt text not null, -- the key that the client must show with it; '' for none
	hash bytes, -- of the one that is good
	expires_at bigint not null, -- as the grant did when it began
	turned_at bigint, -- when the one before was spent
	turned_jkt text, -- the key that was shown then
	primary key (tenant_id, id),
	foreign key (tenant_id, grant_id) references oauth_grant (tenant_id, id)
);
insert into refresh_family (tenant_id, id, grant_id, generation, jkt, hash, expires_at, turned_at, turned_jkt)
	select tenant_id, hash, grant_id, generation, jkt, case when spent_at is null then hash end, expires_at, spent_at, spent_jkt from refresh_token;
drop table refresh_token;
create index refresh_family_due on refresh_family ((expires_at / 3600000000));

-- With which successors are made, so that a lost answer may be asked for again.
create table refresh_window (
	at bigint primary key, -- two seconds, counted from the epoch
	key bytes not null
);
