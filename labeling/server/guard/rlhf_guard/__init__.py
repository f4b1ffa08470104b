"""A middleware for Label Studio Community, which treats all users alike and connects to addresses that they name.

- Only the owner of the organisation administers: invitations, projects, tasks, exports, storages, webhooks, other
  accounts. Annotators read, and write annotations, drafts and views: their own, in their own name, and no larger or
  odder than we store. Accounts that the owner did not name as annotators only read.
- Requests of browsers come from Label Studio's own pages: its session cookie goes to every port of a host, and its
  check for forged requests is off for the API. With RLHF_PAGE_HOST pages have a host name of their own, and browsers
  that ask under another get a page that leads there and no cookie.
- An account has a limited number of wrong passwords in a minute.
- Filters by regular expression, which can run for hours, are the owner's.
- With SSRF protection no connection is made to this machine or its network, by whatever library, for anybody. Label
  Studio checks the addresses of storages and webhooks, but not those within credentials (`token_uri`). Its database
  is not concerned: psycopg connects in C.

Written for Label Studio 1.23; imports only what its environment has, and of its modules only when a request is served.
"""

from .middleware import Guard

__all__ = ["Guard"]
