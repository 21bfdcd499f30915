-- A refresh token is written anew each time it is used. Its key begins with its
-- time, so that tokens of the same moment share pages; in the index of what is due
-- those of an hour follow each other as they come. What a grant has is looked up
-- nowhere, and that there is one successor is seen to by the spending of the token.
drop index refresh_token_grant;
drop index refresh_token_due;
create index refresh_token_due on refresh_token ((expires_at / 3600000000));

-- What is good once has nothing but chance in its key. As rows in the order in which
-- they come, only that one tree is written all over: in the index of what is due
-- those of a second follow each other.
drop index used_jti_due;
alter table used_jti rename to used_jti_before;
create table used_jti (
	tenant_id text not null,
	hash bytes not null,
	expires_at bigint not null,
	primary key (tenant_id, hash)
);
insert into used_jti (tenant_id, hash, expires_at) select tenant_id, hash, expires_at from used_jti_before;
drop table used_jti_before;
create index used_jti_due on used_jti (expires_at);
