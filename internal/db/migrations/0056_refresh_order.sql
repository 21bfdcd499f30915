-- A refresh token is written anew each time it is used. Its key begins with its
-- time, so that tokens of the same moment share pages; in the index of what is due
-- those of an hour follow each other as they come. What a grant has is looked up
-- nowhere, and that there is one successor is seen to by the spending of the token.
drop index refresh_token_grant;
drop index refresh_token_due;
create index refresh_token_due on refresh_token ((expires_at / 3600000000));
