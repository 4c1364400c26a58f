"""The icon sets: which packages, in which versions. Their licences come with them and go into the data card."""

from __future__ import annotations

from examples.quickstart.emoji.sources import STYLES, Style

# Exact versions: another version is another data set.
ICON_SETS = (
    Style(
        name="bi",
        package="@iconify-json/bi",
        version="1.2.7",
        title="Bootstrap Icons",
        integrity="sha512-IPz8WNxmLkH1I9msl+0Q4OnmjjvP4uU0Z61a4i4sqonB6vKSbMGUWuGn8/YuuszlReVj8rf+3gNv5JU8Xoljyg==",
    ),
    Style(
        name="carbon",
        package="@iconify-json/carbon",
        version="1.2.29",
        title="Carbon",
        integrity="sha512-whk3BOU2jXFtweigCrrrYXT7NzWXGUT1q268vEnySzhfdnwZhQhVlFjhkgZH86JRRx21/CziTmzpAJMe5V2yKQ==",
    ),
    Style(
        name="fa6-solid",
        package="@iconify-json/fa6-solid",
        version="1.2.4",
        title="Font Awesome 6 Solid",
        integrity="sha512-LmDNNdJVyvF5mPm1yxWvL8KjCc/E8LzoqnF1LNTVpyY2ZJRUlGOWuPIThdbuFBF2IovgttkIyumhyqfmlHdwKg==",
    ),
    Style(
        name="fluent-ui",
        package="@iconify-json/fluent",
        version="1.2.60",
        title="Fluent UI System Icons",
        integrity="sha512-+Tc4TcygQpzm2QNQ3v1/p5V+3OWczkJzKMqUw01pzGiIYLD85uhWPY4GaERkU0+J9J9ZqGQEWKSOk/qPL2ofsw==",
    ),
    Style(
        name="game-icons",
        package="@iconify-json/game-icons",
        version="1.2.4",
        title="Game Icons",
        integrity="sha512-/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg==",
    ),
    Style(
        name="iconoir",
        package="@iconify-json/iconoir",
        version="1.2.11",
        title="Iconoir",
        integrity="sha512-clBrCsZPkmdksYOkufVp7aoAU1j1hFQPrLUooWWmoYIMvKskUHQ+IDnwV7agTR+tGYHbud7OP2SRfYEpnqFDNw==",
    ),
    Style(
        name="ion",
        package="@iconify-json/ion",
        version="1.2.7",
        title="IonIcons",
        integrity="sha512-ZJNG5kLCbTPr68mdP0jx6Q3lB9AMEQKO2+VvIjuJ2llGFICBLD+cvESn/qGDRIqSfk2D3PrFMf/Qg8WKIUV7cg==",
    ),
    Style(
        name="lucide",
        package="@iconify-json/lucide",
        version="1.2.137",
        title="Lucide",
        integrity="sha512-uKz1+tFbv1RFX/mJQNksdnyKJijNfRGSNnxfiyKtr+dLNfA3ERph+IgpXClKGOlV/5GsZwLv2jgJXQ/bjF/JAg==",
    ),
    Style(
        name="material-symbols",
        package="@iconify-json/material-symbols",
        version="1.2.98",
        title="Material Symbols",
        integrity="sha512-ycgn080/EGstyYcJFu+HN0TYI+ts/KFPb+An0dzpwZit4M/BoFO9U54BwBmrS2Qo/3g9NYV4Y/g1BT425tNgEw==",
    ),
    Style(
        name="mdi",
        package="@iconify-json/mdi",
        version="1.2.3",
        title="Material Design Icons",
        integrity="sha512-O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
    ),
    Style(
        name="mingcute",
        package="@iconify-json/mingcute",
        version="1.2.8",
        title="MingCute",
        integrity="sha512-J8VXpRwTpx5yzOzyhx3T4IXnfXIKTWFl3rZ9okcW4c+NMMuwkLvdmM4rkjB83tnYIhg5+kkeMpmw8tvSnxd4rQ==",
    ),
    Style(
        name="ph",
        package="@iconify-json/ph",
        version="1.2.2",
        title="Phosphor",
        integrity="sha512-PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
    ),
    Style(
        name="ri",
        package="@iconify-json/ri",
        version="1.2.10",
        title="Remix Icon",
        integrity="sha512-WWMhoncVVM+Xmu9T5fgu2lhYRrKTEWhKk3Com0KiM111EeEsRLiASjpsFKnC/SrB6covhUp95r2mH8tGxhgd5Q==",
    ),
    Style(
        name="solar",
        package="@iconify-json/solar",
        version="1.2.13",
        title="Solar",
        integrity="sha512-/ZWb6xRib6pzxD/qTkKWYhuzSU2yu0bY+EN0spgtz1NM3d5f4eYueQZpL3PfCdsg5uVfm4Ldtt3cAyQL+YI8/Q==",
    ),
    Style(
        name="tabler",
        package="@iconify-json/tabler",
        version="1.2.41",
        title="Tabler Icons",
        integrity="sha512-GHg+H/cnr0anaCoV383JONiOMxZQOdojWYNLgL3x0fRE07YW7c+AHiYmIhXet//oq26T830qitdP7l43ojiCXw==",
    ),
)
EMOJI_SETS = STYLES
ALL_SETS = (*ICON_SETS, *EMOJI_SETS)
# Those whose licences ask for no more than the names of authors: what is made of them need not have the same licence.
FREE_SETS = tuple(one for one in ALL_SETS if one.name != "openmoji")
