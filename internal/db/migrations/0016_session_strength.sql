-- How whoever opened a session proved who that is: what the session's
-- certificate is worth cannot be more.
alter table session add column strength text not null default 'bound' check (strength in ('secret', 'key', 'bound'));
