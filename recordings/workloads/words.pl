# Builds one long text and a few long lists piece by piece: realloc() of large blocks, which the C library does by mremap.
use strict;
use warnings;
my ($text, @numbers, @texts) = ('');
for my $i (1 .. 1_000_000) {
    $text .= "word" . ($i * 7919 % 10_007) . " ";
    push @numbers, $i * 31 % 997;
    $texts[$i % 5] .= $i;
}
my %count;
$count{$_}++ for split ' ', substr($text, 0, 900_000);
my @most = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 2];
print "@most ", length($text), " ", scalar(@numbers), " ", join(' ', map { length } @texts), "\n";
